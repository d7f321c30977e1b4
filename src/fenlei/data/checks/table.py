"""A split, read once: the texts, and what the checks need to know of each row, in arrays."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.config import DataConfig
from fenlei.data.checks.characters import SURROGATE, CharacterCounts, count_characters
from fenlei.data.checks.near import band_keys
from fenlei.data.checks.report import Place, clip
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.columns import to_example
from fenlei.data.example import Example
from fenlei.data.labels import twin_key
from fenlei.data.probe import estimate_rows
from fenlei.data.readers import StreamedRow, stream_examples
from fenlei.data.tables import clean_text
from fenlei.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, "int | None"], None]
Source = str | Path | Sequence[Example]
_CHUNK_ROWS = 4096
_CHUNK_CHARACTERS = 2_000_000
_TUPLES_KEPT = 100_000


class LabelIndex:
    """Numbers for the labels of all splits, in order of appearance."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, label: str) -> int:
        """The number of a label, a new one for a new label."""
        found = self._number.get(label)
        if found is None:
            found = self._number[label] = len(self.names)
            self.names.append(label)
        return found


@dataclass
class Bad:
    """Rows of one kind that cannot be used."""

    count: int = 0
    examples: list[Place] = field(default_factory=list)


@dataclass
class Split:
    """One split; the arrays have an entry a usable row.

    Attributes:
        name: ``train``, ``dev`` or ``test``.
        source: as given.
        labels: the index that the label numbers belong to.
        texts: the texts as they are.
        label: number of the label, ``(N,)``.
        line: line or row number, ``(N,)``.
        file: index into ``files``, ``(N,)``.
        files: names of the files.
        characters: what the texts are made of.
        key: hash of the text without white space, width and case, ``(N,)``.
        bands: keys for near duplicates, ``(N, B)``.
        read: rows found, bad ones included.
        bad: kind of problem -> the rows that cannot be used.
        candidates: name that stands among candidates -> where first.
        sample: rows for token lengths.
    """

    name: str
    source: str
    labels: LabelIndex
    texts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    read: int = 0
    bad: dict[str, Bad] = field(default_factory=dict)
    candidates: dict[str, str] = field(default_factory=dict)
    sample: list[Example] = field(default_factory=list)
    label: NDArray[np.int32] = field(init=False)
    line: NDArray[np.int64] = field(init=False)
    file: NDArray[np.int32] = field(init=False)
    characters: CharacterCounts = field(init=False)
    key: NDArray[np.int64] = field(init=False)
    bands: NDArray[np.uint64] = field(init=False)

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, row: int) -> str:
        """``file:line`` of a row."""
        line = int(self.line[row])
        name = self.files[int(self.file[row])]
        return f"{name}:{line}" if line >= 0 else name

    def label_of(self, row: int) -> str:
        """The label of a row."""
        return self.labels.names[int(self.label[row])]

    def place(self, row: int, note: str = "", at: int = 0) -> Place:
        """A row as an example."""
        return Place(self.where(row), clip(self.texts[row], at), note)


class _Builder:
    """Rows as they come in; texts are looked at some thousand at a time."""

    def __init__(self, split: Split, settings: CheckSettings, sample: int, seed: int) -> None:
        self.split = split
        self.settings = settings
        self.most = sample
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.label, self.file, self.line, self.key = array("i"), array("i"), array("q"), array("q")
        self.file_index: dict[str, int] = {}
        self.parts: list[CharacterCounts] = []
        self.bands: list[NDArray[np.uint64]] = []
        self.tuples: set[tuple[str, ...]] = set()
        self.pending = 0

    def add(self, example: Example) -> None:
        split = self.split
        name, _, line = example.source.rpartition(":")
        if not line.isdecimal():
            name, line = example.source, "-1"
        place = self.file_index.setdefault(name, len(self.file_index))
        if place == len(split.files):
            split.files.append(clean_text(name))  # a file name may be no UTF-8
        self.file.append(place)
        self.line.append(int(line))
        self.label.append(split.labels.number(str(example.label)))
        split.texts.append(example.text)
        if example.candidates is not None and example.candidates not in self.tuples:
            if len(self.tuples) >= _TUPLES_KEPT:
                self.tuples.clear()
            self.tuples.add(example.candidates)
            for candidate in example.candidates:
                split.candidates.setdefault(candidate, clean_text(example.source))
        self._draw(example)
        self.pending += len(example.text)
        if self.pending >= _CHUNK_CHARACTERS or len(split.texts) - len(self.key) >= _CHUNK_ROWS:
            self.look()

    def _draw(self, example: Example) -> None:
        """Keeps a fair sample of the rows so far (Vitter 1985, algorithm R)."""
        sample = self.split.sample
        if len(sample) < self.most:
            sample.append(example)
        elif self.most:
            place = self.random.randrange(len(self.split.texts))
            if place < self.most:
                sample[place] = example

    def look(self) -> None:
        """Takes what the checks need from the texts that have come since the last call."""
        texts = self.split.texts
        start, self.pending = len(self.key), 0
        if start == len(texts):
            return
        self.parts.append(count_characters(texts[start:]))
        if (self.parts[-1].flags & SURROGATE).any():  # rows from Python; a reader has replaced them already
            texts[start:] = [clean_text(text) for text in texts[start:]]
        plain = [twin_key(text) for text in texts[start:]]
        self.key.extend(map(hash, plain))
        self.bands.append(band_keys(plain, self.settings.near_similarity, self.settings.near_characters))

    def finish(self) -> None:
        import numpy as np

        self.look()
        split = self.split
        split.label, split.file = np.array(self.label, np.int32), np.array(self.file, np.int32)
        split.line, split.key = np.array(self.line, np.int64), np.array(self.key, np.int64)
        if self.parts:
            split.characters = CharacterCounts(*map(np.concatenate, zip(*self.parts, strict=True)))
            split.bands = np.concatenate(self.bands)


def read_split(
    name: str,
    source: Source,
    config: DataConfig,
    settings: CheckSettings,
    labels: LabelIndex,
    *,
    sample: int = 0,
    seed: int = 0,
    offline: bool = False,
    progress: Progress = lambda *_: None,
) -> Split:
    """Reads a split; rows that cannot be used are counted by kind.

    Args:
        name: ``train``, ``dev`` or ``test``.
        source: a file, a folder, a data set id, or rows.
        config: how files are read.
        settings: thresholds.
        labels: numbers the labels of all splits.
        sample: rows kept for token lengths.
        seed: of the sample.
        offline: hub data sets from local caches only.
        progress: called with what is done, the rows so far, and about how many there are.

    Raises:
        DataError: the source as a whole cannot be read, or has no rows.
    """
    given = isinstance(source, str | Path)
    split = Split(name, clean_text(str(source)) if given else f"{name} rows", labels)
    builder = _Builder(split, settings, sample, seed)
    about = estimate_rows(source) if given else None  # type: ignore[arg-type]
    total = about.rows if about else (None if given else len(source))  # type: ignore[arg-type]
    for row in _rows(source, config, name, offline):
        split.read += 1
        if row.example is not None:
            builder.add(row.example)
        else:
            kind, why = _fault(row, config)
            bad = split.bad.setdefault(kind, Bad())
            bad.count += 1
            if len(bad.examples) < settings.examples:
                bad.examples.append(Place(clean_text(row.source), clip(_shown(row)), clean_text(why)))
        if split.read % _CHUNK_ROWS == 0:
            progress(f"reading {name}", split.read, total)
    builder.finish()
    progress(f"reading {name}", split.read, split.read)
    if not split.read:
        raise DataError(f"{split.source}: no rows; expected at least one row with a text")
    return split


def _rows(source: Source, config: DataConfig, role: str, offline: bool) -> Iterable[StreamedRow]:
    if isinstance(source, str | Path):
        yield from stream_examples(source, config, role=role, offline=offline)
        return
    for number, example in enumerate(source, start=1):
        where = example.source or f"row {number}"
        if not example.text.strip():
            yield StreamedRow(where, example.text, None, None, "the text is empty")
        elif example.label is None:
            yield StreamedRow(where, example.text, None, None, "the label is missing")
        elif example.candidates is not None and example.label not in example.candidates:
            reason = f"label {example.label!r} is not among the row's candidates"
            yield StreamedRow(where, example.text, None, None, reason)
        else:
            yield StreamedRow(where, example.text, None, example)


def _fault(row: StreamedRow, config: DataConfig) -> tuple[str, str]:
    """Kind of problem of a row that cannot be used, and the reason."""
    if row.reason.endswith(("the text is empty", "the text is missing")):
        return "text-empty", row.reason
    if row.columns is None or not isinstance(row.found, dict):
        kinds = {"the label is missing": "label-missing", "candidates": "label-not-candidate"}
        return next((kind for end, kind in kinds.items() if row.reason.endswith(end)), "row-unreadable"), row.reason
    try:
        example = to_example(row.found, row.columns, row.source, 0, need_label=False, aliases=config.aliases)
    except DataError:
        return "row-unreadable", row.reason
    if example.label is None:
        return ("label-missing" if row.reason.endswith("missing") else "row-unreadable"), row.reason
    if example.candidates is not None and example.label not in example.candidates:
        return "label-not-candidate", row.reason
    return "label-unknown", row.reason


def _shown(row: StreamedRow) -> str:
    found: Any = row.found
    if isinstance(found, dict) and row.columns is not None and isinstance(found.get(row.columns.text), str):
        return clean_text(found[row.columns.text])
    return clean_text(found if isinstance(found, str) else repr(found)[:200])
