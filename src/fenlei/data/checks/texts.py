"""Texts that look damaged, empty of meaning, or unlike the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from fenlei.data.checks.characters import (
    BEGINNING_DENSE,
    BOM,
    CONTROL,
    ENTITY,
    HAN_LEAD,
    LATIN_LEAD,
    NO_LETTERS,
    PRIVATE,
    REPLACED,
    SCRIPTS,
    SURROGATE,
    TAG,
)
from fenlei.data.checks.mojibake import find_mojibake
from fenlei.data.checks.report import Finding, Place, Severity, clip
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.surrogates import rows_with_surrogates
from fenlei.data.checks.table import Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONG = 2000
_MOST_BEGINNINGS = 1000
_LEAST_ROWS = 20
_CUT_LENGTH = 100
_CUT_SHARE = 0.1
_CUT_PEAK = 5
_NEARLY = 0.9
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|font|img|table|tr|td|th|tbody|ul|ol|li|dl|dt|dd|h[1-6]|hr|pre|code|sup|sub|"
    r"script|style|html|head|body|title|meta|link|iframe|input|form|button|center|blockquote|section|article|svg|video)"
    r"(?:\s[^<>]{0,500})?/?>|<!--|<!DOCTYPE|&(?:nbsp|lt|gt|amp|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});",
    re.IGNORECASE,
)
_CHAT = re.compile(
    r"<[|｜][A-Za-z][\w▁ ]{0,39}[|｜]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|"
    r"</?(?:think|tool_call|tool_response)>"
)
_DIGITS = re.compile(r"\d")
_HIDDEN = re.compile("\ufeff|\ufffd|[\ue000-\uf8ff]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")


class _Kind(NamedTuple):
    """A finding that a pattern makes: which rows are looked at, and by what."""

    code: str
    severity: Severity
    flag: int
    pattern: re.Pattern[str]
    title: str
    advice: str


_PATTERNS = (
    _Kind(
        "text-html",
        "warning",
        TAG | ENTITY,
        _HTML,
        "texts with HTML tags or entities",
        "Strip them (html.unescape, a parser) here and wherever the classifier will be used; they cost tokens",
    ),
    _Kind(
        "text-chat-token",
        "note",
        TAG,
        _CHAT,
        "texts that spell control tokens of chat models",
        "Harmless here: fenlei never makes control tokens of text. Other tools may; are they meant to be there?",
    ),
    _Kind(
        "text-bom",
        "warning",
        BOM,
        re.compile("\ufeff"),
        "texts with a byte order mark inside (U+FEFF, invisible)",
        "Files were joined byte by byte; remove the character",
    ),
    _Kind(
        "text-replacement",
        "warning",
        REPLACED,
        re.compile("\ufffd"),
        "texts with U+FFFD: a decoder has replaced what it could not read",
        "The characters are lost; make the file again from its source with the right encoding",
    ),
    _Kind(
        "text-control",
        "warning",
        CONTROL,
        re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]"),
        "texts with control characters",
        "Remove them; 0x80 to 0x9F come from Windows-1252 read as Latin-1",
    ),
    _Kind(
        "text-private-use",
        "note",
        PRIVATE,
        re.compile("[\ue000-\uf8ff]"),
        "texts with characters of private use, which only one font or vendor knows",
        "Replace them by what they stood for; often the encoding was a vendor's extension of GBK or Big5",
    ),
)


def check_texts(split: Split, distinct: NDArray[np.bool_], settings: CheckSettings) -> Iterator[Finding]:
    """All findings about the texts of one split.

    Args:
        split: the rows.
        distinct: the first row of each text, ``(N,)``; copies say nothing about beginnings.
        settings: thresholds.
    """
    import numpy as np

    yield from _blank(split, settings)
    mojibake = _mojibake(split, settings)
    surrogates = rows_with_surrogates(split, np.flatnonzero(split.characters.flags & (REPLACED | SURROGATE)))
    damaged = set(surrogates)
    if mojibake is not None:
        finding, rows = mojibake
        damaged.update(rows)
        yield finding
    if surrogates:
        yield Finding(
            "text-surrogate",
            "warning",
            split.name,
            "texts with lone surrogates (half of a \\ud83d\\ude00): no characters; they are read as U+FFFD",
            len(surrogates),
            len(split),
            "Make the file again from its source; often a text was cut in the middle of an emoji",
            tuple(
                split.place(row, at=split.texts[row].find("\ufffd")) for row in sorted(surrogates)[: settings.examples]
            ),
        )
    for kind in _PATTERNS:
        skip = damaged if kind.flag & (CONTROL | REPLACED) else set()  # said already
        yield from _matches(split, kind, skip, settings)
    yield from _long(split, settings)
    if split.name == "train":  # of the others it would be the same again
        yield from _cut(split, settings)
        yield from _beginnings(split, distinct, settings)
    yield from _foreign(split, settings)


def _finding(
    split: Split, code: str, severity: Severity, title: str, advice: str, rows: list[int], places: list[Place]
) -> Finding:
    return Finding(code, severity, split.name, title, len(rows), len(split), advice, tuple(places))


def _blank(split: Split, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    rows = [int(row) for row in np.flatnonzero(split.characters.blank)]
    if rows:
        places = [split.place(row, f"label {split.label_of(row)}") for row in rows[: settings.examples]]
        title = "texts of digits, punctuation and white space only"
        yield _finding(
            split, "text-no-letters", "warning", title, "Delete them unless they mean something", rows, places
        )


def _mojibake(split: Split, settings: CheckSettings) -> tuple[Finding, list[int]] | None:
    import numpy as np

    rows: list[int] = []
    places: list[Place] = []
    for row in np.flatnonzero(split.characters.flags & (LATIN_LEAD | HAN_LEAD)):
        found = find_mojibake(split.texts[row])
        if found is not None:
            rows.append(int(row))
            if len(places) < settings.examples:
                places.append(split.place(int(row), found[1], found[0]))
    if not rows:
        return None
    advice = (
        "Make the file again from its source; name the encoding there (data.encoding) instead of letting it be guessed"
    )
    title = "texts that were decoded with the wrong encoding (mojibake)"
    return _finding(split, "text-mojibake", "warning", title, advice, rows, places), rows


def _matches(split: Split, kind: _Kind, skip: set[int], settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    rows: list[int] = []
    places: list[Place] = []
    for row in map(int, np.flatnonzero(split.characters.flags & kind.flag)):
        found = kind.pattern.search(split.texts[row]) if row not in skip else None
        if found is None:
            continue
        rows.append(row)
        if len(places) < settings.examples:
            note = "" if _HIDDEN.fullmatch(found[0]) else found[0][:40]
            places.append(split.place(row, note, found.start()))
    if rows:
        yield _finding(split, kind.code, kind.severity, kind.title, kind.advice, rows, places)


def _long(split: Split, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    lengths = split.characters.length
    limit = max(_LONG, settings.long_factor * float(np.median(lengths)))
    order = np.argsort(-lengths, kind="stable")
    rows = [int(row) for row in order[: int((lengths > limit).sum())]]
    if rows:
        places = [split.place(row, f"{int(lengths[row]):,} characters") for row in rows[: settings.examples]]
        title = f"very long texts: more than {limit:,.0f} characters"
        advice = (
            "Are several documents in one row, or a whole page? All but the first tokens are cut (prompt.truncation)"
        )
        yield _finding(split, "text-long", "note", title, advice, rows, places)


def _beginnings(split: Split, distinct: NDArray[np.bool_], settings: CheckSettings) -> Iterator[Finding]:
    """Different texts that begin alike: headers, signatures, templates."""
    import numpy as np

    beginning = np.where(distinct, split.characters.beginning, np.uint64(0))
    values, counts = np.unique(beginning, return_counts=True)
    least = max(_LEAST_ROWS, settings.beginning_share * len(split))
    frequent = sorted(
        ((int(n), value) for value, n in zip(values, counts, strict=True) if n >= least and value), reverse=True
    )
    total, places = 0, []
    for number, value in frequent:
        rows = np.flatnonzero(beginning == value)
        total += number
        shared = _common([split.texts[row] for row in rows[:_MOST_BEGINNINGS]])
        labels, sizes = np.unique(split.label[rows], return_counts=True)
        mostly = (
            f", nearly all {split.labels.names[int(labels[sizes.argmax()])]}" if sizes.max() >= _NEARLY * number else ""
        )
        note = f"{number} rows begin so ({number / len(split):.0%}){mostly}"
        places.append(Place(split.where(int(rows[0])), clip(shared), note))
    if places:
        yield Finding(
            "text-beginning",
            "note",
            split.name,
            "different texts with the same beginning",
            total,
            len(split),
            "Strip headers and templates: they cost tokens, and a model may learn the source instead of the content",
            tuple(places[: settings.examples]),
        )


def _common(texts: list[str]) -> str:
    """The first text's part that all of them begin with, digits aside."""
    alike = [_DIGITS.sub("0", text) for text in texts]
    low, high = min(alike), max(alike)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return texts[0][: max(same, BEGINNING_DENSE)]


def _cut(split: Split, settings: CheckSettings) -> Iterator[Finding]:
    """Many texts that have just the greatest length: they were cut before."""
    import numpy as np

    lengths = split.characters.length
    longest = int(lengths.max())
    rows = np.flatnonzero(lengths == longest)
    beside = int((lengths == longest - 1).sum())
    if longest < _CUT_LENGTH or len(rows) < max(_LEAST_ROWS, _CUT_SHARE * len(split), _CUT_PEAK * beside):
        return
    places = [
        Place(split.where(int(r)), "…" + clip(split.texts[r][-40:]), "ends so") for r in rows[: settings.examples]
    ]
    title = f"texts of exactly {longest:,} characters, the greatest length: they seem to have been cut"
    advice = "If the classifier will see whole texts, train it on whole texts"
    yield _finding(split, "text-cut", "note", title, advice, rows.tolist(), places)


def _foreign(split: Split, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    characters = split.characters
    counts = np.bincount(characters.script[characters.script >= 0], minlength=len(SCRIPTS))
    main = int(counts.argmax())
    if counts[main] < settings.main_script * len(split):
        return
    without = (characters.script >= 0) & (characters.script != main) & ((characters.has >> main) & 1 == 0)
    rows = [int(row) for row in np.flatnonzero(without)]
    if rows:
        places = [split.place(row, SCRIPTS[int(characters.script[row])]) for row in rows[: settings.examples]]
        title = (
            f"texts without a single {SCRIPTS[main]} letter, among {counts[main] / len(split):.0%} in {SCRIPTS[main]}"
        )
        yield _finding(split, "text-script", "note", title, "Is another language meant to be there?", rows, places)


def scripts(split: Split) -> dict[str, int]:
    """Script -> rows, most rows first."""
    import numpy as np

    counts = np.bincount(split.characters.script + 1, minlength=len(SCRIPTS) + 1)
    names = (NO_LETTERS, *SCRIPTS)
    return {names[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}
