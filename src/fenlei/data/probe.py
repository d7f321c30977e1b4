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
_MOST_BLOCKS = 256
_COUNTED = 64  # blocks whose lines are counted
_DATASET_SUFFIXES = (".arrow", ".json")  # what `datasets` saves a data set as


class RowCount(NamedTuple):
    """How many rows a source has.

    Attributes:
        rows: their number.
        exact: counted, not estimated.
    """

    rows: int
    exact: bool


def fingerprint(source: str | Path) -> str:
    """A hash by which changed content is noticed, whatever the times of the files say; "" for a hub data set.

    Files of up to 256 MB are hashed whole. Of a larger one, its size and 256 blocks of 1 MB spread from its first byte
    to its last: no more than a second however large it is. What lies between is for the reader of the rows to hash.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    files = _data_files(source)
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as handle:
                for start in _spread(size, _MOST_BLOCKS):
                    handle.seek(start)
                    digest.update(handle.read(_BLOCK))
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest() if files else ""


def estimate_rows(source: str | Path) -> RowCount | None:
    """The number of rows for a progress bar: from Parquet's metadata, else from the line ends in a part of the file.

    Returns:
        None where it cannot be told cheaply: JSON arrays, data sets of a hub or of ``datasets``.
    """
    total, exact = 0, True
    files = _data_files(source)
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


def _data_files(source: str | Path) -> list[Path]:
    if isinstance(source, str) and hub.hub_id(source) is not None:
        return []
    found = sorted(input_files(source), key=lambda file: file.name)
    if not Path(source).expanduser().is_dir():
        return found
    return [file for file in found if kind_of(file) or file.suffix in _DATASET_SUFFIXES]


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
