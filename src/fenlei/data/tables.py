"""Rows of one file, as they stand in it: JSON Lines, JSON, CSV, TSV, Parquet.

A row that cannot be read comes out as a :class:`RawRow` with a reason: never lost, never the file's end.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fenlei.data.encodings import detect_encoding, open_decoded, open_text
from fenlei.errors import DataError

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_WRAPPERS = ("data", "rows", "examples", "items", "records")
_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# Lists in lists and objects in objects: whatever handles a row does so by calling itself, and Python ends that at some
# hundreds of levels.
_DEEPEST = 100


class RawRow(NamedTuple):
    """One row of a file.

    Attributes:
        line: the physical line it starts on (text files) or its number from 1 (Parquet, hub data sets).
        values: column -> value, or None when the row cannot be read.
        reason: why it cannot be read.
        raw: the row as found, for the record of rejected rows.
    """

    line: int
    values: dict[str, Any] | None
    reason: str = ""
    raw: Any = None


class Table(NamedTuple):
    """Rows of one file or split.

    Attributes:
        name: how messages speak of it.
        rows: its rows.
        place: where a source has several files, the file's name and a colon: begins the ids that rows get.
    """

    name: str
    rows: Iterator[RawRow]
    place: str = ""


class _Repeated(dict):  # type: ignore[type-arg]
    """A JSON object that names a key twice; json itself would keep the last value without a word."""

    key = ""


def kind_of(path: Path) -> str | None:
    """Which reader a file name asks for, or None; ``.gz`` may follow a text suffix."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    kind = KINDS.get(Path(name[:-3] if packed else name).suffix)
    return None if packed and kind == "parquet" else kind


def iter_file(path: Path, encoding: str | None = None) -> Iterator[RawRow]:
    """Streams the rows of one file in constant memory (``.json`` alone is loaded whole).

    Args:
        path: a file with one of the suffixes of :data:`KINDS`, text files also packed as ``.gz``.
        encoding: text encoding; recognised when None.

    Raises:
        DataError: the file as a whole cannot be read: unknown kind, encoding, header, or JSON array.
    """
    readers: dict[str, Callable[[Path, str | None], Iterator[RawRow]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _delimited,
        "tsv": _delimited,
        "parquet": _parquet,
    }
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: expected a file that ends in {', '.join(KINDS)}; rename or convert it")
    return readers[kind](path, encoding)


def clean_text(text: str) -> str:
    """Replaces lone surrogates by U+FFFD; everything else is kept as it is.

    They come from JSON escapes such as D800 alone, are no characters, and cannot be encoded.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)


def clean_values(value: Any) -> Any:
    """:func:`clean_text` on every string inside a JSON value, keys included."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean_values(item) for item in value]
    if isinstance(value, dict) and not isinstance(value, _Repeated):
        return {clean_text(key): clean_values(item) for key, item in value.items()}
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    repeated = _Repeated(values)
    seen: set[str] = set()
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _json_row(line: int, value: Any, text: str) -> RawRow:
    """The row that a value is; ``text`` is how it was written."""
    if _too_deep(value, text):
        return RawRow(line, None, f"lists or objects inside each other are more than {_DEEPEST} levels deep", text)
    if _SURROGATE_ESCAPE.search(text):
        value = clean_values(value)
    if isinstance(value, _Repeated):
        return RawRow(line, None, f"column {value.key!r} stands twice in this row", dict(value))
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
        return RawRow(line, None, f"expected a JSON object {{...}}, found {kind}", value)
    return RawRow(line, value)


def _too_deep(value: Any, text: str) -> bool:
    if text.count("[") + text.count("{") <= _DEEPEST:  # which nearly every row is content with
        return False
    level = [value]
    for _ in range(_DEEPEST):
        inner = [
            list(item.values()) if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))
        ]
        level = [item for items in inner for item in items]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)


def _jsonl(path: Path, encoding: str | None) -> Iterator[RawRow]:
    with open_text(path, encoding) as handle:
        yield from _json_lines(handle)


def _json_lines(lines: Iterable[str]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, start=1):
        body = line.strip(" \t\r\n\ufeff")
        if not body:
            continue
        try:
            value = _DECODER.decode(line.lstrip("\ufeff"))
        except json.JSONDecodeError as error:
            hint = "; is this a .json file (one array)?" if body in ("[", "{") else ""
            yield RawRow(number, None, f"invalid JSON at column {error.colno}: {error.msg}{hint}", body)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            yield RawRow(number, None, f"invalid JSON: {error}", body)
        else:
            yield _json_row(number, value, body)


def _json(path: Path, encoding: str | None) -> Iterator[RawRow]:
    with open_text(path, encoding) as handle:
        text = handle.read().lstrip("\ufeff")
    start = _skip_blank(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _json_array(path, text, start)
        return
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        if "\n" not in text.strip():
            raise _broken_json(path, text, error) from None
        yield from _json_lines(text.split("\n"))  # JSON Lines under the name .json, its first line broken
        return
    if _skip_blank(text, end) < len(text):
        yield from _json_lines(text.split("\n"))
        return
    for key in _WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(key), list):
            found = re.search(rf'"{key}"\s*:\s*(?=\[)', text)
            if found:
                yield from _json_array(path, text, found.end(), whole=False)
                return
    yield _json_row(1, value, text[start:end])


def _json_array(path: Path, text: str, start: int, *, whole: bool = True) -> Iterator[RawRow]:
    """Items of an array one by one, so that each row knows its line."""
    line, mark = 1, 0
    index = _skip_blank(text, start + 1)
    if text[index : index + 1] == "]":
        return
    while True:
        line += text.count("\n", mark, index)
        mark = index
        try:
            value, end = _DECODER.raw_decode(text, index)
        except (ValueError, RecursionError) as error:
            raise _broken_json(path, text, error) from None
        yield _json_row(line, value, text[index:end])
        index = _skip_blank(text, end)
        if text[index : index + 1] == ",":
            index = _skip_blank(text, index + 1)
            continue
        if text[index : index + 1] != "]":
            raise _broken_json(path, text, json.JSONDecodeError("expected ',' or ']'", text, index))
        rest = _skip_blank(text, index + 1)
        if whole and rest < len(text):
            raise _broken_json(path, text, json.JSONDecodeError("text after the end of the array", text, rest))
        return


def _skip_blank(text: str, index: int) -> int:
    found = _BLANK.match(text, index)
    return found.end() if found else index


def _broken_json(path: Path, text: str, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        place, reason = f"{path}:{error.lineno}", f"invalid JSON at column {error.colno}: {error.msg}"
    else:
        place, reason = f"{path}", f"invalid JSON: {error}"
    return DataError(f"{place}: {reason}; expected an array of objects [{{...}}, ...] or one object a line")


class _Lines:
    """Feeds csv and keeps the lines of the row in hand: for its record, and for the NULs csv may not take."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = lines
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.row.append(line)
            yield line.replace("\0", "\ufffd")  # csv raises on NUL before Python 3.11


def _delimited(path: Path, encoding: str | None) -> Iterator[RawRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    codec = detect_encoding(path, encoding)
    delimiter, quoting = "\t", csv.QUOTE_MINIMAL
    if kind_of(path) == "tsv":
        quoting = _tsv_quoting(path, codec)
    else:
        with open_decoded(path, codec) as handle:
            first = handle.readline()
        delimiter = "," if "," in first else next((d for d in "\t;" if d in first), ",")
    rows = _csv_rows(path, codec, delimiter, quoting)
    header = next(rows, None)
    if header is None:
        return
    if header.reason:
        raise DataError(f"{path}:{header.line}: the header cannot be read: {header.reason}")
    names = [name.strip() for name in header.raw]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{header.line}: column header {twice[0]!r} stands twice; rename one of them")
    for row in rows:
        if row.reason:
            yield row
        elif len(row.raw) != len(names):
            reason = f"expected {len(names)} fields ({', '.join(names)}), found {len(row.raw)}"
            yield RawRow(row.line, None, reason, row.raw)
        else:
            yield RawRow(row.line, dict(zip(names, row.raw, strict=True)))


def _csv_rows(path: Path, codec: str, delimiter: str, quoting: int) -> Iterator[RawRow]:
    """Rows as lists of fields in ``raw``, or with a reason; a row may span lines inside quotes."""
    with open_decoded(path, codec) as handle:
        lines = _Lines(handle)
        # strict: without it an unclosed quote swallows the rest of the file in one field
        reader = csv.reader(iter(lines), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
        while True:
            start = reader.line_num + 1
            lines.row.clear()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                span = f"line {start} to {reader.line_num}: " if reader.line_num > start else ""
                yield RawRow(start, None, f"broken quoting or line end: {span}{error}", "".join(lines.row))
                continue
            if any("\0" in line for line in lines.row):
                yield RawRow(start, None, "holds a NUL character", fields)
            elif fields:
                yield RawRow(start, None, raw=fields)


def _tsv_quoting(path: Path, codec: str) -> int:
    """Whether quotes in a TSV file enclose fields (Excel's way) or are plain characters (as in corpora)."""
    with open_decoded(path, codec) as handle:
        if not any('"' in line for line in handle):
            return csv.QUOTE_MINIMAL
    faults = {}
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        rows = _csv_rows(path, codec, "\t", quoting)
        header = next(rows, None)
        width = len(header.raw or ()) if header else 0
        faults[quoting] = sum(bool(row.reason) or len(row.raw) != width for row in rows)
    return min(faults, key=lambda quoting: faults[quoting])  # the first wins a tie


def _parquet(path: Path, encoding: str | None) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # as it comes pyarrow would hold the whole file, or at least a whole row group, in memory
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as table:
            names = list(table.schema_arrow.names)
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"{path}: column {twice[0]!r} stands twice; rename one of them")
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(number, values)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is no UTF-8
        raise DataError(f"{path}: cannot be read as Parquet: {error}; is the file whole?") from None
