"""What can be told of a source without reading its rows: whether it changed, and about how many rows it has."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fenlei.data import hub
from fenlei.data.readers import input_files
from fenlei.data.tables import kind_of
from fenlei.errors import DataError

_BLOCK = 1 << 20
_COUNTED = 64  # blocks whose lines are counted


class RowCount(NamedTuple):
    """How many rows a source has.

    Attributes:
        rows: their number.
        exact: counted, not estimated.
    """

    rows: int
    exact: bool


def fingerprint(source: str | Path) -> str:
    """A hash of all bytes of a source's files, whatever their times say; "" for data sets of a hub or of ``datasets``.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    files = data_files(source)
    for file in files:
        try:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as handle:
                while block := handle.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest() if files else ""


def estimate_rows(source: str | Path) -> RowCount | None:
    """The number of rows for a progress bar: from Parquet's metadata, else from the line ends in a part of the file.

    Returns:
        None where it cannot be told cheaply: JSON arrays, data sets of a hub or of ``datasets``.
    """
    total, exact = 0, True
    files = data_files(source)
    for file in files:
        kind = kind_of(file)
        try:
            if kind == "parquet":
                import pyarrow.parquet as pq

                total += pq.read_metadata(file).num_rows
            elif kind in ("jsonl", "csv", "tsv"):
                total += max(0, _lines(file) - (kind != "jsonl"))
                exact = False
            else:
                return None
        except (OSError, EOFError, ValueError):
            return None  # the reader will say what is wrong with it
    return RowCount(total, exact) if files else None


def data_files(source: str | Path) -> list[Path]:
    """The local files that a source is read from; none for data sets of a hub or of ``datasets``."""
    if isinstance(source, str) and hub.hub_id(source) is not None:
        return []
    path = Path(source).expanduser()
    if path.is_dir() and hub.is_saved(path):
        return []
    found = sorted(input_files(source), key=lambda file: file.name)
    return [file for file in found if kind_of(file)] if path.is_dir() else found


def _spread(size: int, blocks: int) -> list[int]:
    """Where to read so many blocks of a file, its first and last bytes among them; all of a smaller file."""
    if size <= blocks * _BLOCK:
        return list(range(0, size, _BLOCK))
    return [(size - _BLOCK) * i // (blocks - 1) for i in range(blocks)]


def _lines(file: Path) -> int:
    size = os.path.getsize(file)
    with file.open("rb") as handle:
        if file.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=handle) as unpacked:
                lines, last = _count(unpacked, _COUNTED * _BLOCK)  # type: ignore[arg-type]
            if last is not None:
                return lines + (last != b"\n")
            return lines * size // max(1, handle.tell())
        places = _spread(size, _COUNTED)
        lines, end = 0, b"\n"
        for start in places:
            handle.seek(start)
            block = handle.read(_BLOCK)
            lines += block.count(b"\n")
            end = block[-1:]
        if size > _COUNTED * _BLOCK:
            return lines * size // (_COUNTED * _BLOCK)
        return lines + (end != b"\n")


def _count(handle: BinaryIO, most: int) -> tuple[int, bytes | None]:
    """Line ends in the first bytes, and the last byte if that was all."""
    lines, read, end = 0, 0, b"\n"
    while read < most:
        block = handle.read(_BLOCK)
        if not block:
            return lines, end
        lines, read, end = lines + block.count(b"\n"), read + len(block), block[-1:]
    return lines, None
