"""From a file, a folder or a data set id to Examples; a bad row is reported or set aside, never lost."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fenlei.config import DataConfig
from fenlei.data import hub
from fenlei.data.columns import Columns, detect_columns, to_example
from fenlei.data.example import Example
from fenlei.data.files import atomic_text, json_text
from fenlei.data.labels import LabelSet
from fenlei.data.tables import KINDS, RawRow, Table, clean_text, iter_file, kind_of
from fenlei.errors import DataError

SHOWN = 10
REJECTED_NAME = "rejected.jsonl"
_PEEK_GOOD = 64
_PEEK_MOST = 10_000


@dataclass(frozen=True)
class Rejected:
    """A row that was not used.

    Attributes:
        source: ``file:line``.
        reason: what is wrong, with the column.
        row: the row as found: its values, its fields, or its text.
    """

    source: str
    reason: str
    row: Any


class StreamedRow(NamedTuple):
    """One row of a source, good or bad.

    Attributes:
        source: ``file:line``.
        found: the row as found: its values, its fields, or its text.
        columns: which columns of its file are used; None where no row of the file can be read.
        example: what was made of it; None for a bad row.
        reason: what is wrong with a bad row.
    """

    source: str
    found: Any
    columns: Columns | None
    example: Example | None
    reason: str = ""


@dataclass(frozen=True)
class ReadResult:
    """What a source gave: ``read == len(examples) + len(rejected)``.

    Attributes:
        examples: the usable rows in order.
        rejected: the others, with ``data.on_bad_row=skip``.
        read: rows found, blank lines aside.
        columns: which columns were used (of the first file where there are several).
    """

    examples: list[Example]
    rejected: list[Rejected]
    read: int
    columns: Columns


def read_examples(
    source: str | Path,
    config: DataConfig,
    *,
    need_label: bool = True,
    rejected_path: Path | None = None,
    role: str = "train",
    offline: bool = False,
    labels: LabelSet | None = None,
) -> ReadResult:
    """Reads all rows of a source.

    Args:
        source: a file (JSONL, JSON, CSV, TSV, Parquet), a folder of these, or a data set id (``ms:ORG/NAME``,
            ``hf:ORG/NAME``, ``ORG/NAME``). Of a folder with files named for several splits (``train.csv``,
            ``test.csv``) only those for ``role`` are read; else all of them in order of name.
        config: columns, aliases, labels, encoding, and what to do with bad rows.
        need_label: rows without a fitting label are bad.
        rejected_path: where the bad rows go as JSON lines ``{"source", "reason", "row"}`` with
            ``on_bad_row=skip``, replacing an older file; written only if there are any.
        role: ``train``, ``dev``, ``test`` or ``predict``: which split of a hub data set or folder.
        offline: hub data sets from local caches only.
        labels: the labels of a trained model; a row with another label or candidate is bad. Default:
            ``config.labels`` where given.

    Raises:
        DataError: the source cannot be read, has no usable row, or has bad rows (the first ten are listed).
    """
    collected = _Collected(str(source), keep=config.on_bad_row == "skip")
    columns: Columns | None = None
    for row in stream_examples(source, config, need_label=need_label, role=role, offline=offline, labels=labels):
        columns = columns or row.columns
        collected.add(row)
    collected.finish(rejected_path)
    assert columns is not None
    return ReadResult(collected.examples, collected.rejected, collected.read, columns)


def stream_examples(
    source: str | Path,
    config: DataConfig,
    *,
    need_label: bool = True,
    role: str = "train",
    offline: bool = False,
    labels: LabelSet | None = None,
) -> Iterator[StreamedRow]:
    """Streams the rows of a source, good and bad, in constant memory (``.json`` alone is loaded whole).

    Args:
        source: as for :func:`read_examples`.
        config: columns, aliases, labels, encoding; ``on_bad_row`` is the caller's affair.
        need_label: rows without a fitting label are bad.
        role: ``train``, ``dev``, ``test`` or ``predict``: which split of a hub data set or folder.
        offline: hub data sets from local caches only.
        labels: the labels of a trained model; a row with another label or candidate is bad. Default:
            ``config.labels`` where given.

    Raises:
        DataError: the source cannot be read, or has no column with texts.
    """
    if labels is None and config.labels is not None:
        labels = LabelSet(config.labels, descriptions=config.descriptions, aliases=config.aliases)
    check = _Check(config, need_label, labels)
    for table in _tables(source, config.encoding, role, config.split, offline, config.train):
        head, rest = _peek(table.rows)
        good = [row.values for row in head if row.values is not None]
        columns = detect_columns(good, config, need_label, table.name) if good else None
        for row in itertools.chain(head, rest):
            yield check.read(table, row, columns)


def require_good_rows(source: str | Path, rows: Iterable[StreamedRow]) -> None:
    """Reads rows to their end for ``on_bad_row=stop``: before any work is done with the good ones.

    Raises:
        DataError: there are bad rows (the first ten are listed), or no rows.
    """
    collected = _Collected(str(source), keep=False)
    for row in rows:
        if row.example is None:
            collected.add(row)
        else:
            collected.read += 1
    if collected.bad or not collected.read:
        collected.finish(None)


def iter_rows(
    source: str | Path,
    *,
    encoding: str | None = None,
    on_bad: Callable[[Rejected], None] | None = None,
    offline: bool = False,
    split: str | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Streams ``("file:line", row)`` in constant memory (JSON files and nothing else are loaded whole).

    Args:
        source: as for :func:`read_examples`; all files of a folder.
        encoding: text encoding; recognised when None.
        on_bad: called with each row that cannot be read (broken JSON, wrong number of fields, ...); without
            it the first such row ends the reading.
        offline: hub data sets from local caches only.
        split: split of a hub data set.

    Raises:
        DataError: the source or, without ``on_bad``, a row of it cannot be read.
    """
    for table in _tables(source, encoding, "predict", split, offline, None):
        for row in table.rows:
            where = f"{table.name}:{row.line}"
            if row.values is not None:
                yield where, row.values
            elif on_bad is not None:
                on_bad(Rejected(where, row.reason, row.raw))
            else:
                raise DataError(f"{where}: {row.reason}")


class _Check:
    """Makes the Example of a row and holds it against the known labels."""

    def __init__(self, config: DataConfig, need_label: bool, labels: LabelSet | None) -> None:
        self.need_label = need_label
        self.labels = labels
        self.rows_choose = config.candidates == "row"  # with `all` a row's own candidates are not used
        self.aliases: Mapping[str, str] = {**config.aliases, **(labels.aliases if labels else {})}

    def __call__(self, row: Mapping[str, Any], columns: Columns, source: str, place: str) -> Example:
        example = to_example(row, columns, source, place, need_label=self.need_label, aliases=self.aliases)
        if self.labels is None:
            return example
        if self.need_label and example.label is not None and example.label not in self.labels:
            raise DataError(f"column {columns.label!r}: {self.labels.unknown(example.label)}")
        for name in example.candidates or () if self.rows_choose else ():
            if name not in self.labels:
                raise DataError(f"column {columns.candidates or columns.text!r}: {self.labels.unknown(name)}")
        return example

    def read(self, table: Table, row: RawRow, columns: Columns | None) -> StreamedRow:
        """The row with its Example, or with the reason why there is none."""
        where, place = f"{table.name}:{row.line}", f"{table.place}{row.line}"
        if row.values is None:
            return StreamedRow(where, row.raw, columns, None, row.reason)
        if columns is None:
            reason = "came after thousands of unreadable rows; the columns were not settled"
            return StreamedRow(where, row.values, columns, None, reason)
        try:
            return StreamedRow(where, row.values, columns, self(row.values, columns, where, place))
        except DataError as error:
            return StreamedRow(where, row.values, columns, None, str(error))


class _Collected:
    """Rows as they come in; read = used + rejected holds at every moment."""

    def __init__(self, source: str, *, keep: bool) -> None:
        self.source = source
        self.keep = keep
        self.examples: list[Example] = []
        self.rejected: list[Rejected] = []
        self.read = 0
        self.bad = 0

    def add(self, row: StreamedRow) -> None:
        self.read += 1
        if row.example is not None:
            self.examples.append(row.example)
            return
        self.bad += 1
        if self.keep or len(self.rejected) < SHOWN:  # a run that will stop needs no more than it shows
            self.rejected.append(Rejected(row.source, row.reason, row.found))

    def finish(self, rejected_path: Path | None) -> None:
        """Writes the rejected rows, or raises over them."""
        if self.read == 0:
            raise DataError(f"{self.source}: no rows; expected at least one row with a text")
        if self.bad and not self.keep:
            raise DataError(self.listing() + "\nMend them, or set data.on_bad_row=skip to set them aside")
        if self.rejected and rejected_path is not None:
            write_rejected(rejected_path, self.rejected)
        if not self.examples:
            raise DataError(self.listing() + "\nNo row is left to use")

    def listing(self) -> str:
        lines = [f"{self.source}: {self.bad} of {self.read} rows cannot be used:"]
        lines += [f"  {row.source}: {row.reason}" for row in self.rejected[:SHOWN]]
        if self.bad > SHOWN:
            lines.append(f"  ... and {self.bad - SHOWN} more")
        return "\n".join(lines)


def write_rejected(path: Path, rows: Iterable[Rejected]) -> None:
    """Writes rejected rows as JSON lines ``{"source", "reason", "row"}``, the whole file or nothing.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_text(Path(path)) as handle:
        for row in rows:
            handle.write(rejected_line(row.source, row.reason, row.row))


def rejected_line(source: str, reason: str, row: Any) -> str:
    """A rejected row as a line of JSON."""
    values = {"source": source, "reason": reason, "row": row}
    return clean_text(json_text(values)) + "\n"


def input_files(source: str | Path) -> list[Path]:
    """The local files that a source stands for; none for a data set id or a path that is not there."""
    path = Path(source).expanduser()
    if path.is_dir():
        return [entry for entry in path.iterdir() if entry.is_file()]
    return [path] if path.exists() else []


def _tables(
    source: str | Path, encoding: str | None, role: str, split: str | None, offline: bool, train: str | None
) -> Iterator[Table]:
    if role not in (*hub.SPLIT_NAMES, "predict"):
        raise DataError(f"role: expected train, dev, test or predict, found {role!r}")
    if role in ("dev", "test") and str(source) == train:
        split = None  # the split chosen for training must not come back as the test set
    if isinstance(source, str) and hub.hub_id(source) is not None:
        yield from hub.hub_tables(source, role=role, split=split, offline=offline)
        return
    path = _existing(source)
    if not path.is_dir():
        yield Table(str(path), iter_file(path, encoding))
        return
    saved = hub.saved_rows(path, role=role, split=split)
    if saved is not None:
        yield saved
        return
    for file in _folder_files(path, role):
        yield Table(str(file), iter_file(file, encoding), f"{file.name}:")


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    try:
        if not str(source).strip():
            raise DataError("expected a file, a folder or a data set id, found an empty name")
        if path.is_file() or path.is_dir():
            return path
        if path.exists():
            raise DataError(f"{path}: expected a regular file or a folder (data is read twice, pipes cannot be)")
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from None
    if names is None:
        hint = (
            f"the folder {str(path.parent)!r} does not exist either; "
            "a data set on a hub is written ms:ORG/NAME or hf:ORG/NAME"
        )
    else:
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0) if names else []
        hint = f"the nearest name there is {near[0]!r}" if near else f"the folder {str(path.parent)!r} is empty"
    raise DataError(f"{path}: no such file or folder; {hint}")


def _folder_files(folder: Path, role: str) -> list[Path]:
    """Data files of a folder by name; where names tell splits apart, only those of the wanted split."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be opened: {error.strerror}") from None
    files = [
        entry
        for entry in entries
        if entry.is_file() and kind_of(entry) and entry.name != REJECTED_NAME and not entry.name.startswith(".")
    ]
    if not files:
        found = ", ".join(repr(entry.name) for entry in entries[:10]) or "nothing"
        raise DataError(f"{folder}: no data file in this folder; expected {', '.join(KINDS)}; found {found}")
    splits = {file: hub.split_of(file) for file in files}
    if role == "predict" or len(set(splits.values()) - {None}) < 2:
        return files
    chosen = [file for file in files if splits[file] == role]
    if not chosen:
        raise DataError(
            f"{folder}: no file for {role} among {', '.join(repr(file.name) for file in files)}; name the file itself"
        )
    return chosen


def _peek(rows: Iterator[RawRow]) -> tuple[list[RawRow], Iterator[RawRow]]:
    """Enough rows to settle the columns, and the rest."""
    head: list[RawRow] = []
    good = 0
    for row in rows:
        head.append(row)
        good += row.values is not None
        if good >= _PEEK_GOOD or len(head) >= _PEEK_MOST:
            break
    return head, rows
