"""Texts that stand more than once: within a split, and in two of them, exactly and nearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fenlei.data.checks.near import NearPairs, near_pairs
from fenlei.data.checks.report import Finding, Place
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.table import Split
from fenlei.data.labels import twin_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAME = "white space, case and width aside"
_LEAK = "Figures on {0} would be too good: take these rows out of {0}, or out of train"


class _Groups(NamedTuple):
    """Rows of one split by text: first row of each text, and each row's first row, ``(N,)``."""

    keys: NDArray[np.int64]
    first: NDArray[np.intp]
    first_of: NDArray[np.intp]


def _groups(split: Split) -> _Groups:
    import numpy as np

    keys, first, inverse = np.unique(split.key, return_index=True, return_inverse=True)
    return _Groups(keys, first, first[inverse])


def first_rows(split: Split) -> NDArray[np.bool_]:
    """The first row of each text, ``(N,)``."""
    import numpy as np

    return _groups(split).first_of == np.arange(len(split))


def check_exact(splits: Sequence[Split], settings: CheckSettings) -> Iterator[Finding]:
    """Same texts: copies, labels that contradict each other, and rows of dev or test that train has too."""
    groups = [_groups(split) for split in splits]
    for split, group in zip(splits, groups, strict=True):
        yield from _conflicts(split, group, settings)
        yield from _copies(split, group, settings)
    for later in range(1, len(splits)):
        for earlier in range(later):
            yield from _leak(splits[earlier], groups[earlier], splits[later], settings)


def _contradicted(split: Split, group: _Groups) -> NDArray[np.bool_]:
    """Rows whose text has another label elsewhere in the split, ``(N,)``."""
    import numpy as np

    differs = split.label != split.label[group.first_of]
    bad: NDArray[np.bool_] = np.zeros(len(split), bool)
    bad[group.first_of[differs]] = True
    return bad[group.first_of]


def _conflicts(split: Split, group: _Groups, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    rows = np.flatnonzero(_contradicted(split, group))
    if not len(rows):
        return
    places: list[Place] = []
    for first in dict.fromkeys(int(row) for row in group.first_of[rows]):
        if len(places) == settings.examples:
            break
        # the first copy with another label; as many with the same one may come before
        other = int(rows[(group.first_of[rows] == first) & (split.label[rows] != split.label[first])][0])
        places.append(
            split.place(first, f"{split.label_of(first)}; but {split.label_of(other)} at {split.where(other)}")
        )
    yield Finding(
        "label-conflict",
        "warning",
        split.name,
        f"rows with the same text ({_SAME}) and different labels",
        len(rows),
        len(split),
        "Decide on one label; the model cannot be right about both",
        tuple(places),
    )


def _copies(split: Split, group: _Groups, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    rows = np.flatnonzero((group.first_of != np.arange(len(split))) & ~_contradicted(split, group))
    if not len(rows):
        return
    advice = "Delete the copies: they count twice"
    if split.name == "train":
        advice += ", and one may end up in the dev set that is split off"
    places = [split.place(int(r), f"as {split.where(int(group.first_of[r]))}") for r in rows[: settings.examples]]
    title = f"copies of an earlier row ({_SAME}), with the same label"
    yield Finding("duplicate-exact", "warning", split.name, title, len(rows), len(split), advice, tuple(places))


def _leak(earlier: Split, group: _Groups, later: Split, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    at = np.searchsorted(group.keys, later.key).clip(max=len(group.keys) - 1)
    rows = np.flatnonzero(group.keys[at] == later.key)
    if not len(rows):
        return
    sources = group.first[at[rows]]
    other = int((later.label[rows] != earlier.label[sources]).sum())
    places = [
        later.place(int(row), f"as {earlier.where(int(source))}{_label_note(later, int(row), earlier, int(source))}")
        for row, source in zip(rows[: settings.examples], sources, strict=False)
    ]
    more = f"; {other} of them have another label there" if other else ""
    yield Finding(
        f"leak-exact-{earlier.name}",
        "error",
        later.name,
        f"rows whose text {earlier.name} has too ({_SAME}){more}",
        len(rows),
        len(later),
        _LEAK.format(later.name).replace("out of train", f"out of {earlier.name}"),
        tuple(places),
    )


def _label_note(split: Split, row: int, other: Split, source: int) -> str:
    own, theirs = split.label_of(row), other.label_of(source)
    return "" if own == theirs else f", but {own} here and {theirs} there"


def check_near(splits: Sequence[Split], settings: CheckSettings, tell: Callable[[int, int], None]) -> Iterator[Finding]:
    """Almost the same texts, exact copies aside."""
    import numpy as np

    owner: NDArray[np.int64] = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    local = np.concatenate([np.arange(len(split)) for split in splits])
    # one row of each text, of the first split that has it
    rows = np.sort(np.unique(np.concatenate([split.key for split in splits]), return_index=True)[1])
    keys = np.concatenate([split.bands for split in splits])[rows]

    def text_of(place: int) -> str:
        row = rows[place]
        return twin_key(splits[int(owner[row])].texts[int(local[row])])

    lengths = np.concatenate([split.characters.length for split in splits])[rows].astype(np.int64)
    pairs = near_pairs(keys, lengths, text_of, settings.near_similarity, tell)
    first, second = rows[pairs.first], rows[pairs.second]
    for number, split in enumerate(splits):
        inside = (owner[first] == number) & (owner[second] == number)
        found = NearPairs(local[first[inside]], local[second[inside]], pairs.similarity[inside], pairs.complete)
        yield from _near_copies(split, found, settings)
        for earlier in range(number):
            across = (owner[first] == earlier) & (owner[second] == number)
            found = NearPairs(local[first[across]], local[second[across]], pairs.similarity[across], pairs.complete)
            yield from _near_leak(splits[earlier], split, found, settings)


def _near_copies(split: Split, pairs: NearPairs, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(pairs.first):
        return
    graph = coo_matrix((np.ones(len(pairs.first), bool), (pairs.first, pairs.second)), (len(split), len(split)))
    count = len(split) - int(connected_components(graph, directed=False)[0])
    order = np.argsort(-pairs.similarity, kind="stable")
    differ = split.label[pairs.first] != split.label[pairs.second]
    yield Finding(
        "duplicate-near",
        "note",
        split.name,
        f"rows almost like another one (at least {settings.near_similarity:.0%} of their three-character pieces)",
        count,
        len(split),
        "Keep one of each where they are the same text; templates that differ in what matters are fine",
        _pair_places(split, split, pairs, order[: settings.examples]),
        at_least=not pairs.complete,
    )
    if differ.any():
        chosen = order[differ[order]]
        rows = np.unique(np.concatenate([pairs.first[differ], pairs.second[differ]]))
        yield Finding(
            "label-conflict-near",
            "warning",
            split.name,
            "rows almost like another one, with another label",
            len(rows),
            len(split),
            "Look at them: one of the labels may be wrong",
            _pair_places(split, split, pairs, chosen[: settings.examples]),
            at_least=not pairs.complete,
        )


def _near_leak(earlier: Split, later: Split, pairs: NearPairs, settings: CheckSettings) -> Iterator[Finding]:
    import numpy as np

    if not len(pairs.first):
        return
    order = np.argsort(-pairs.similarity, kind="stable")
    _, once = np.unique(pairs.second[order], return_index=True)
    chosen = order[np.sort(once)]
    yield Finding(
        f"leak-near-{earlier.name}",
        "warning",
        later.name,
        f"rows almost like one of {earlier.name} (at least {settings.near_similarity:.0%} of their pieces)",
        len(chosen),
        len(later),
        _LEAK.format(later.name).replace("out of train", f"out of {earlier.name}"),
        _pair_places(later, earlier, pairs, chosen[: settings.examples]),
        at_least=not pairs.complete,
    )


def _pair_places(split: Split, other: Split, pairs: NearPairs, chosen: NDArray[np.intp]) -> tuple[Place, ...]:
    """The later row of each pair, with where the earlier one is."""
    places = []
    for pair in chosen:
        row, source = int(pairs.second[pair]), int(pairs.first[pair])
        note = f"{pairs.similarity[pair]:.0%} like {other.where(source)}{_label_note(split, row, other, source)}"
        places.append(split.place(row, note))
    return tuple(places)
