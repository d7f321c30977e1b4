"""What characters the texts are made of, counted for many texts at once."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# classes of characters; from FIRST_SCRIPT on they are letters
OTHER, DIGIT, MARK, SPACE, FIRST_SCRIPT = range(5)
SCRIPTS = (
    "Latin",
    "Han",
    "kana",
    "Hangul",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Thai",
    "Devanagari",
    "other letters",
)
NO_LETTERS = "no letters"
_CLASSES = FIRST_SCRIPT + len(SCRIPTS)
_RANGES = {
    "Han": ((0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Latin": ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Hebrew": ((0x590, 0x5FF),),
    "Arabic": ((0x600, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "Devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "Thai": ((0xE00, 0xE7F),),
}
_LAST = 0x323B0  # everything above is rare and counts as OTHER
_KANA_SHARE = 0.1  # Japanese has more kanji than kana at times; Chinese has next to no kana

# A flag for each character after which a text is worth a closer look. Regular expressions run on those texts only.
TAG, ENTITY, LATIN_LEAD, HAN_LEAD, BOM, REPLACED, CONTROL, SURROGATE, PRIVATE = (1 << bit for bit in range(9))
# of 锟斤拷, 烫烫, 屯屯, and of the commonest Chinese characters as UTF-8 read as GBK: ，。的是在
_HAN_LEADS = "锟烫屯锛銆鐨鏄鍦鈥"


class CharacterCounts(NamedTuple):
    """For ``N`` texts.

    Attributes:
        length: characters, ``(N,)``.
        script: index into :data:`SCRIPTS` of the script that most letters belong to; -1 without letters, ``(N,)``.
        has: bit ``i``: at least one letter of script ``i``, ``(N,)``.
        blank: nothing but digits, punctuation and white space, ``(N,)``.
        flags: the flags of all its characters together, ``(N,)``.
        beginning: a hash of the first characters, digits aside; 0 for a text without that many, ``(N,)``.
    """

    length: NDArray[np.int32]
    script: NDArray[np.int8]
    has: NDArray[np.uint16]
    blank: NDArray[np.bool_]
    flags: NDArray[np.uint16]
    beginning: NDArray[np.uint64]


BEGINNING = 16
BEGINNING_DENSE = 8
_DENSE = [FIRST_SCRIPT + SCRIPTS.index(name) for name in ("Han", "kana", "Hangul")]
_DENSE_ENOUGH = 3


def code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All characters of all texts in a row, and each text's number of them, ``(N,)``."""
    import numpy as np

    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return np.frombuffer(joined, np.uint32), lengths


def count_characters(texts: Sequence[str]) -> CharacterCounts:
    """Counts the characters of texts that are not empty."""
    import numpy as np

    classes, flags = _tables()
    points, lengths = code_points(texts)
    inside = np.minimum(points, _LAST)
    starts = np.cumsum(lengths) - lengths
    rows: NDArray[np.int64] = np.repeat(np.arange(len(texts)), lengths)
    counts = np.bincount(rows * _CLASSES + classes[inside], minlength=len(texts) * _CLASSES)
    counts = counts.reshape(len(texts), _CLASSES)
    letters = counts[:, FIRST_SCRIPT:]
    total = letters.sum(axis=1)
    script = np.where(total > 0, letters.argmax(axis=1), -1).astype(np.int8)
    kana = SCRIPTS.index("kana")
    script[letters[:, kana] > np.maximum(total * _KANA_SHARE, 0)] = kana
    has = ((letters > 0) << np.arange(len(SCRIPTS))).sum(axis=1).astype(np.uint16)
    return CharacterCounts(
        length=lengths.astype(np.int32),
        script=script,
        has=has,
        blank=(total == 0) & (counts[:, OTHER] == 0),
        flags=np.bitwise_or.reduceat(flags[inside], starts),
        beginning=_beginnings(points, starts, lengths),
    )


def is_content(points: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which characters are neither punctuation nor white space."""
    import numpy as np

    classes = _tables()[0][np.minimum(points, _LAST)]
    return (classes != MARK) & (classes != SPACE)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): spreads every bit over all others."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _beginnings(
    points: NDArray[np.uint32], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint64]:
    import numpy as np

    found: NDArray[np.uint64] = np.zeros(len(starts), np.uint64)
    long = np.flatnonzero(lengths > BEGINNING)
    classes = _tables()[0]
    hashed: NDArray[np.uint64] = np.full(len(long), 1, np.uint64)
    dense: NDArray[np.int64] = np.zeros(len(long), np.int64)
    for offset in range(BEGINNING):
        taken = np.minimum(points[starts[long] + offset], _LAST)
        digit = classes[taken] == DIGIT
        step = mix(hashed + np.where(digit, np.uint32(ord("0")), taken))  # numbers and dates count as one
        dense += np.isin(classes[taken], _DENSE)
        # of Chinese, eight characters are as telling as sixteen letters
        hashed = np.where((offset >= BEGINNING_DENSE) & (dense >= _DENSE_ENOUGH), hashed, step)
    found[long] = hashed
    return found


@functools.cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Class and flags of every code point up to ``_LAST``."""
    import numpy as np

    kinds = {"P": MARK, "Z": SPACE, "N": DIGIT, "C": MARK, "L": _CLASSES - 1, "M": _CLASSES - 1, "S": MARK}
    categories = [unicodedata.category(chr(point)) for point in range(_LAST)]
    classes = np.array([kinds[name[0]] for name in categories] + [OTHER], np.uint8)
    symbols = np.array([name in ("So", "Co", "Cn") for name in categories] + [False])
    classes[symbols] = OTHER  # emoji and pictures say something; private characters may
    classes[[9, 10, 11, 12, 13]] = SPACE
    scripts: NDArray[np.uint8] = np.full(len(classes), len(SCRIPTS) - 1, np.uint8)
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            scripts[first : last + 1] = SCRIPTS.index(name)
    letter = classes == _CLASSES - 1
    classes[letter] = FIRST_SCRIPT + scripts[letter]

    flags: NDArray[np.uint16] = np.zeros(len(classes), np.uint16)
    for bit, characters in (
        (TAG, "<["),
        (ENTITY, "&"),
        (LATIN_LEAD, [chr(point) for point in range(0xC2, 0xF5)]),
        (HAN_LEAD, _HAN_LEADS),
        (BOM, "\ufeff"),
        (REPLACED, "\ufffd"),
        (CONTROL, [chr(p) for p in (*range(9), 11, 12, *range(14, 32), *range(127, 133), *range(134, 160))]),
        (SURROGATE, [chr(point) for point in range(0xD800, 0xE000)]),
        (PRIVATE, [chr(point) for point in range(0xE000, 0xF900)]),
    ):
        flags[[ord(char) for char in characters]] |= bit
    return classes, flags
