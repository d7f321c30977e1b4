"""Labels: spellings, classes that are too small, and labels that only one split knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fenlei.config import DataConfig
from fenlei.data.checks.report import Finding, Place
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.table import Split
from fenlei.data.labels import twin_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHORTEST = 4  # of two characters, one other makes another word
_FEW = 20  # a misspelling is so many times rarer than the label
_MOST_LABELS = 5000  # more are not compared with each other
_SEVERE = 10.0  # times CheckSettings.imbalance


def check_labels(
    train: Split, others: Sequence[Split], config: DataConfig, settings: CheckSettings
) -> Iterator[Finding]:
    """All findings about labels.

    Args:
        train: the training rows.
        others: dev and test, where given.
        config: known labels, and whether a row's own candidates count.
        settings: thresholds.
    """
    counts = {split.name: label_counts(split) for split in (train, *others)}
    yield from _variants([train, *others], config, settings)
    yield from _misspelt([train, *others], counts, settings)
    yield from _sizes(train, counts["train"], config, settings)
    for split in others:
        yield from _unseen(train, split, counts, config, settings)
        yield from _absent(counts["train"], split, counts[split.name], settings)
    yield from _never_right(train, counts, settings)


def label_counts(split: Split) -> dict[str, int]:
    """Label -> rows, most rows first."""
    import numpy as np

    numbers, rows = np.unique(split.label, return_counts=True)
    order = np.argsort(-rows, kind="stable")
    return {split.labels.names[int(numbers[i])]: int(rows[i]) for i in order}


def _rows_of(split: Split, label: str) -> NDArray[np.intp]:
    import numpy as np

    return np.flatnonzero(split.label == split.labels.number(label))


def _first(split: Split, label: str, note: str = "") -> Place:
    """The first row of a label; or where it stands as a candidate, or nowhere."""
    rows = _rows_of(split, label)
    if len(rows):
        return split.place(int(rows[0]), note)
    return Place(split.candidates.get(label, ""), "", note)


def _variants(splits: Sequence[Split], config: DataConfig, settings: CheckSettings) -> Iterator[Finding]:
    """Names that differ in case, width or white space only; training stops at them."""
    seen: dict[str, dict[str, Split]] = {}
    for split in splits:
        names = dict.fromkeys(label_counts(split))
        if config.candidates == "row":
            names.update(dict.fromkeys(split.candidates))
        for name in names:
            seen.setdefault(twin_key(name), {}).setdefault(name, split)
    odd: dict[str, list[Place]] = {}
    for group in seen.values():
        rows = {name: sum(len(_rows_of(split, name)) for split in splits) for name in group}
        usual = max(group, key=lambda name: rows[name])
        for name in group:
            if name != usual:
                note = f"{name!r} ({_rows(rows[name])}) beside {usual!r} ({_rows(rows[usual])})"
                odd.setdefault(group[name].name, []).append(_first(group[name], name, note))
    for split in splits:
        if split.name in odd:
            yield Finding(
                "label-variant",
                "error",
                split.name,
                "labels that differ from another one only in case, white space or full and half width",
                len(odd[split.name]),
                sum(map(len, seen.values())),
                "Make them one in the data, or map one to the other: 'data.aliases={other: label}'",
                tuple(odd[split.name][: settings.examples]),
                "labels",
            )


def _misspelt(splits: Sequence[Split], counts: dict[str, dict[str, int]], settings: CheckSettings) -> Iterator[Finding]:
    """A rare label one letter away from a frequent one."""
    total: dict[str, int] = {}
    home: dict[str, Split] = {}
    for split in splits:
        for name, rows in counts[split.name].items():
            total[name] = total.get(name, 0) + rows
            home.setdefault(name, split)
    if len(total) > _MOST_LABELS:
        return
    frequent = sorted(total, key=lambda name: -total[name])
    found: list[tuple[str, str]] = []
    for name in frequent:
        right = next((other for other in frequent if total[other] >= _FEW * total[name] and one_off(name, other)), None)
        if right is not None:
            found.append((name, right))
    for split in splits:
        here = [(name, right) for name, right in found if home[name] is split]
        if here:
            notes = [
                f"{name!r} ({total[name]} rows), is {right!r} ({total[right]} rows) meant?" for name, right in here
            ]
            yield Finding(
                "label-misspelt",
                "warning",
                split.name,
                "rare labels that are one letter away from a frequent one",
                len(here),
                len(total),
                "If it is a slip, mend it, or map it: 'data.aliases={slip: label}'",
                tuple(_first(split, name, note) for (name, _), note in zip(here, notes, strict=True))[
                    : settings.examples
                ],
                "labels",
            )


def one_off(name: str, other: str) -> bool:
    """Whether one letter was changed, left out, added, or swapped with its neighbour.

    Names that are short, or differ in a digit (``class 1``, ``class 2``), are different names.
    """
    if min(len(name), len(other)) < _SHORTEST or abs(len(name) - len(other)) > 1 or name == other:
        return False
    start = 0
    while start < min(len(name), len(other)) and name[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(name), len(other)) - start and name[-1 - end] == other[-1 - end]:
        end += 1
    left, right = name[start : len(name) - end], other[start : len(other) - end]
    if any(char.isdigit() for char in left + right):
        return False
    return max(len(left), len(right)) <= 1 or (len(left) == 2 and left == right[::-1])


def _sizes(train: Split, counts: dict[str, int], config: DataConfig, settings: CheckSettings) -> Iterator[Finding]:
    if len(counts) == 1:
        yield Finding(
            "label-single",
            "error",
            "train",
            f"all rows have the same label, {next(iter(counts))!r}",
            len(train),
            len(train),
            "A classifier needs two labels or more; is data.label_column right?",
        )
    listed = counts | {name: 0 for name in config.labels or () if name not in counts}
    rare = [name for name, rows in listed.items() if rows < settings.min_class_rows]
    if rare:
        yield Finding(
            "label-rare",
            "warning",
            "train",
            f"classes with fewer than {settings.min_class_rows} rows",
            len(rare),
            len(listed),
            "Label more rows of them, or join them with a related class; figures on so few rows say little",
            tuple(_first(train, name, f"{name}: {_rows(listed[name])}") for name in rare[::-1][: settings.examples]),
            "labels",
        )
    large, small = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    ratio = counts[large] / counts[small]
    if ratio >= settings.imbalance:
        severe = ratio >= settings.imbalance * _SEVERE
        yield Finding(
            "label-imbalance",
            "warning" if severe else "note",
            "train",
            f"the largest class has {ratio:.0f} times the rows of the smallest: "
            f"{large!r} {counts[large]}, {small!r} {counts[small]}",
            counts[small],
            len(train),
            "Look at macro-F1 instead of accuracy; train.oversample (on by default) shows small classes more often",
        )


def _unseen(
    train: Split, split: Split, counts: dict[str, dict[str, int]], config: DataConfig, settings: CheckSettings
) -> Iterator[Finding]:
    """Labels that training refuses, and labels that it knows from candidates alone."""
    import numpy as np

    own, learnt = counts[split.name], counts["train"]
    listed = set(config.labels or ())
    known = {*learnt, *train.candidates, *listed}
    twins = {twin_key(name) for name in known}
    # candidates are checked by training even where data.candidates=all leaves them out of the prompts
    names = dict.fromkeys([*own, *split.candidates])
    unknown = [name for name in names if name not in known and twin_key(name) not in twins]
    if unknown:
        rows = sum(own.get(name, 0) for name in unknown)
        yield Finding(
            "label-unknown-to-train",
            "error",
            split.name,
            f"labels or candidates that the training data does not have ({_rows(rows)})",
            len(unknown),
            len(names),
            "Add training rows for them, map spellings with data.aliases, or list all labels in data.labels",
            tuple(_first(split, name, repr(name)) for name in unknown[: settings.examples]),
            "labels",
        )
    never = [name for name in own if name in known and name not in learnt]
    if never:
        numbers = [split.labels.number(name) for name in never]
        yield Finding(
            "label-never-trained",
            "warning",
            split.name,
            "rows of labels that no training row has",
            int(np.isin(split.label, numbers).sum()),
            len(split),
            "The model has seen no example of them; add training rows",
            tuple(_first(split, name, repr(name)) for name in never[: settings.examples]),
        )


def _absent(learnt: dict[str, int], split: Split, own: dict[str, int], settings: CheckSettings) -> Iterator[Finding]:
    missing = [name for name in learnt if name not in own]
    if missing:
        yield Finding(
            "label-not-in-" + split.name,
            "note",
            split.name,
            f"labels without a {split.name} row",
            len(missing),
            len(learnt),
            "How well they are told apart stays unknown; macro-F1 is over the other labels only",
            tuple(Place("", name, f"{_rows(learnt[name])} in train") for name in missing[: settings.examples]),
            "labels",
        )


def _never_right(train: Split, counts: dict[str, dict[str, int]], settings: CheckSettings) -> Iterator[Finding]:
    """Names that are offered and never the answer, in any split: often a misspelling of a label."""
    answers = {twin_key(name) for own in counts.values() for name in own}
    idle = [name for name in train.candidates if twin_key(name) not in answers]
    if idle:
        yield Finding(
            "candidate-never-right",
            "note",
            "train",
            "candidates that are never the answer",
            len(idle),
            len({*train.candidates}),
            "If one is a misspelt label, mend it; else the model will learn never to answer it",
            tuple(Place(train.candidates[name], "", repr(name)) for name in idle[: settings.examples]),
            "labels",
        )


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
