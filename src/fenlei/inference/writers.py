"""CSV and Parquet from the lines that were staged, in constant memory.

Neither can be written as the rows come. CSV has one header, and the rows of a JSON Lines file may bring new columns at
any point. Parquet has one schema, and its index stands at the end of the file: one that was killed cannot be appended
to. So rows are staged as JSON lines, which can be appended to and cut at any line, and only the whole of them is turned
into the final form. That is a pure function of the staged lines: after a crash it is simply done again.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fenlei.data.files import CsvWriter, json_text
from fenlei.inference.records import read_typed_line

# a row group ends at either: large enough for a small index, small enough for memory
GROUP_ROWS = 16_384
GROUP_BYTES = 16 << 20


class DurableFile(io.RawIOBase):
    """A new file whose bytes are on disk when :meth:`force` returns."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._handle = os.open(path, flags, 0o666)
        self._written = 0

    def writable(self) -> bool:  # noqa: D102
        return True

    def write(self, data: Any) -> int:
        """Writes all of the bytes and says how many they are."""
        rest = memoryview(data)
        while rest:
            count = os.write(self._handle, rest)
            self._written += count
            rest = rest[count:]
        return len(data)

    def tell(self) -> int:
        """Bytes written."""
        return self._written

    def force(self) -> None:
        """Forces everything written to disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Closes the file; more than once does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        super().close()


def convert(staged: Path, target: Path, suffix: str) -> None:
    """Turns staged lines into a file of the final form, forced to disk.

    Args:
        staged: lines as :mod:`fenlei.inference.records` makes them: plain ones for CSV, typed ones for Parquet.
        target: the file to write; replaced if it is there.
        suffix: ``.csv`` or ``.parquet``.

    Raises:
        OSError: it cannot be written.
    """
    if suffix == ".csv":
        _write_csv(staged, target)
    else:
        _write_parquet(staged, target)


def _write_csv(staged: Path, target: Path) -> None:
    names: dict[str, None] = {}
    for line in _lines(staged):
        names.update(dict.fromkeys(json.loads(line)))
    raw = DurableFile(target)
    try:
        buffered = io.BufferedWriter(raw, 1 << 20)
        text = io.TextIOWrapper(buffered, encoding="utf-8", newline="", write_through=True)
        writer = CsvWriter(text)
        writer.writerow(names)
        for line in _lines(staged):
            record = json.loads(line)
            writer.writerow([cell(record.get(name)) for name in names])
        text.flush()
        raw.force()
    finally:
        raw.close()


def cell(value: Any) -> Any:
    """A value as it stands in a CSV file."""
    if isinstance(value, (dict, list, tuple)):
        return json_text(value)
    return str(value).lower() if isinstance(value, bool) else value


def _write_parquet(staged: Path, target: Path) -> None:
    types = _column_types(staged)
    while True:
        try:
            _write_groups(staged, target, types)
            return
        except _DoesNotFit as misfit:  # e.g. whole numbers beyond 2^53 among fractions
            types[misfit.column] = None


class _DoesNotFit(Exception):
    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def _column_types(staged: Path) -> dict[str, Any]:
    """The Arrow type of each column over all rows, in order of appearance; None where values of several kinds mix."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for records in _groups(staged):
        for name in dict.fromkeys(name for record in records for name in record):
            if name == "probabilities":
                types[name] = pa.map_(pa.string(), pa.float64())
            elif types.get(name, True) is not None:
                try:
                    found = pa.array([record.get(name) for record in records]).type
                    types[name] = _common(types[name], found) if name in types else found
                except _NOT_ONE_KIND:
                    types[name] = None
    return {name: kind if kind is not None and _storable(kind) else None for name, kind in types.items()}


# pyarrow's ArrowInvalid is a ValueError, its ArrowTypeError a TypeError
_NOT_ONE_KIND = (ValueError, TypeError, OverflowError, NotImplementedError)


def _common(one: Any, other: Any) -> Any:
    """The type that holds the values of both.

    Raises:
        TypeError: there is none that keeps every value as it is.
    """
    import pyarrow as pa
    from pyarrow import types

    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if types.is_decimal(one) and types.is_decimal(other):
        scale = max(one.scale, other.scale)
        return pa.decimal128(max(one.precision - one.scale, other.precision - other.scale) + scale, scale)
    if types.is_list(one) and types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _common(fields[field.name], field.type) if field.name in fields else field.type
        return pa.struct(list(fields.items()))
    raise TypeError(f"{one} and {other}")


def _storable(kind: Any) -> bool:
    """Parquet has no form for an object without members."""
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.num_fields) and all(_storable(field.type) for field in kind)
    return _storable(kind.value_type) if types.is_list(kind) else True


def _write_groups(staged: Path, target: Path, types: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, kind or pa.string()) for name, kind in types.items()])
    raw = DurableFile(target)
    try:
        with pq.ParquetWriter(raw, schema) as writer:
            for records in _groups(staged):
                arrays = [_array(name, types[name], records) for name in schema.names]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(records))
        raw.force()
    finally:
        raw.close()


def _array(name: str, kind: Any, records: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    values = [record.get(name) for record in records]
    if kind is None:
        return pa.array([None if value is None else str(cell(value)) for value in values], pa.string())
    if name == "probabilities":
        return pa.array([list(record[name].items()) for record in records], kind)
    try:
        return pa.array(values, kind)
    except _NOT_ONE_KIND:
        raise _DoesNotFit(name) from None


def _groups(staged: Path) -> Iterator[list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    size = 0
    for line in _lines(staged):
        records.append(read_typed_line(line))
        size += len(line)
        if len(records) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield records
            records, size = [], 0
    if records:
        yield records


def _lines(staged: Path) -> Iterator[bytes]:
    with staged.open("rb") as handle:
        yield from handle
