"""Texts that are almost the same: MinHash over pieces of three characters, then the exact similarity.

Pieces of characters need no words, so Chinese is compared as well as English. MinHash (Broder 1997) with banding finds
pairs that may be similar; each is then compared exactly, so no pair is reported by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fenlei.data.checks.characters import code_points, is_content, mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE = 3
_PERMUTATIONS = 64
_SEED = 42
_MISSED = 0.02  # most pairs at the threshold that banding may overlook
_MOST_PAIRS = 2_000_000
_NEIGHBOURS = 4  # of more rows that are all alike, each is compared with so many before it, and the first
_CHUNK = 4_000_000  # characters that are compared at once


class NearPairs(NamedTuple):
    """Pairs of similar rows.

    Attributes:
        first: row of each pair, the smaller number, ``(P,)``.
        second: the other, ``(P,)``.
        similarity: Jaccard similarity of the sets of pieces, ``(P,)``.
        complete: False where there were too many candidates to compare them all: there may be more pairs.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]
    complete: bool


def rows_a_band(similarity: float) -> int:
    """Hashes a band: as many as leave at most 2 % of the pairs of just this similarity unseen."""
    fits = [r for r in (8, 4, 2) if (1 - similarity**r) ** (_PERMUTATIONS // r) <= _MISSED]
    return fits[0] if fits else 1


def pieces(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of all runs of three letters or digits of each text; punctuation and white space are left out.

    Returns:
        The hashes of all texts in a row, and where each text's begin and end, ``(N + 1,)``.
    """
    import numpy as np

    points, lengths = code_points(texts)
    rows: NDArray[np.int64] = np.repeat(np.arange(len(texts)), lengths)
    kept = is_content(points)
    points, rows = points[kept].astype(np.uint64), rows[kept]
    if len(points) < _PIECE:
        return np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    hashed = points[: -_PIECE + 1]
    for offset in range(1, _PIECE):
        # a code point has 21 bits: three of them fit side by side, so that different pieces differ
        hashed = (hashed << np.uint64(21)) | points[offset : len(points) - _PIECE + 1 + offset]
    same_text = rows[: -_PIECE + 1] == rows[_PIECE - 1 :]
    counts = np.bincount(rows[: -_PIECE + 1][same_text], minlength=len(texts))
    return mix(hashed[same_text]), np.concatenate([[0], np.cumsum(counts)])


def band_keys(texts: Sequence[str], similarity: float, shortest: int) -> NDArray[np.uint64]:
    """For each text a key a band, ``(N, B)``; texts with a key in common may be similar.

    Texts with fewer than ``shortest`` letters and digits get zeros.
    """
    import numpy as np
    from rensa import RMinHash

    per_band = rows_a_band(similarity)
    hashes, offsets = pieces(texts)
    enough = np.diff(offsets) >= shortest - _PIECE + 1
    keys: NDArray[np.uint64] = np.zeros((len(texts), _PERMUTATIONS // per_band), np.uint64)
    if not enough.any():
        return keys
    long: NDArray[np.bool_] = np.repeat(enough, np.diff(offsets))
    ends = np.concatenate([[0], np.cumsum(np.diff(offsets)[enough])]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes[long], ends, _PERMUTATIONS, _SEED)
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(int(enough.sum()), -1, per_band)
    found = np.zeros(signatures.shape[:2], np.uint64)
    for place in range(per_band):
        found = mix(found + signatures[:, :, place])
    keys[enough] = found | np.uint64(1)  # 0 stands for none
    return keys


def near_pairs(
    keys: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    text_of: Callable[[int], str],
    similarity: float,
    tell: Callable[[int, int], None],
) -> NearPairs:
    """Pairs of rows that are similar enough.

    Of more than six rows that are all alike, each is paired with the first of them and with four neighbours, not with
    all others.

    Args:
        keys: from :func:`band_keys`, ``(N, B)``.
        lengths: about how many characters each text has, ``(N,)``: so many are compared at once.
        text_of: the text of a row, as given to :func:`band_keys`.
        similarity: the least similarity.
        tell: called with the pairs compared and their number.
    """
    import numpy as np

    codes, complete = _candidates(keys)
    first, second = codes // len(keys), codes % len(keys)
    similarities: NDArray[np.float64] = np.zeros(len(codes))
    read = np.cumsum(lengths[first] + lengths[second])
    start = 0
    while start < len(codes):
        done = int(read[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(read, done + _CHUNK)))
        similarities[start:stop] = _jaccard(first[start:stop], second[start:stop], text_of)
        start = stop
        tell(start, len(codes))
    near = similarities >= similarity
    return NearPairs(first[near], second[near], similarities[near], complete)


def _candidates(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], bool]:
    """Pairs with a key in common, as ``first * N + second``, and whether these are all."""
    import numpy as np

    codes: NDArray[np.int64] = np.zeros(0, np.int64)
    complete = True
    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        order = order[np.searchsorted(column[order], 1) :]
        ordered = column[order]
        begins = np.diff(ordered, prepend=0) != 0
        head = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        behind = np.arange(len(order)) - head  # rows before it in its bucket
        complete = complete and not (behind > _NEIGHBOURS + 1).any()
        far = np.flatnonzero(behind > _NEIGHBOURS)
        found = [codes, order[head[far]] * len(keys) + order[far]]
        for distance in range(1, _NEIGHBOURS + 1):
            later = np.flatnonzero(behind >= distance)
            found.append(order[later - distance] * len(keys) + order[later])
        codes = np.concatenate(found)
        codes.sort()  # np.union1d hashes, which takes minutes for numbers as regular as these
        codes = codes[np.diff(codes, prepend=-1) > 0]
        if len(codes) > _MOST_PAIRS:
            return codes[:_MOST_PAIRS], False
    return codes, complete


def _jaccard(first: NDArray[np.int64], second: NDArray[np.int64], text_of: Callable[[int], str]) -> NDArray[np.float64]:
    """Exact Jaccard similarity of pairs of rows, ``(P,)``."""
    import numpy as np
    from scipy.sparse import csr_matrix

    rows, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    hashes, offsets = pieces([text_of(int(row)) for row in rows])
    columns = np.unique(hashes, return_inverse=True)[1]
    sets = csr_matrix((np.ones(len(hashes), np.int32), columns, offsets), (len(rows), len(hashes) + 1))
    sets.sum_duplicates()
    sets.data[:] = 1  # a piece counts once a text
    sides = place.reshape(2, -1)
    sizes = np.diff(sets.indptr)
    common = np.asarray(sets[sides[0]].multiply(sets[sides[1]]).sum(axis=1)).ravel()
    union = sizes[sides[0]] + sizes[sides[1]] - common
    return common / np.maximum(union, 1)
