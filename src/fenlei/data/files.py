"""Files that appear whole or not at all, and what is written into them: CSV and JSON that every reader takes."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fenlei.errors import DataError


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Writes UTF-8 text to a temporary name beside ``path`` and renames it when all went well.

    Whatever ends the block early, an interrupt included, leaves neither a half file nor the temporary one,
    and an older file of that name as it was. Line ends are written as they come.

    Raises:
        DataError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing at the file it names
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


class CsvWriter:
    r"""Rows of CSV whose lines end in a plain ``\n``.

    Python's own writer puts a field in quotes over the characters that its lines end with. Lines that end in ``\n``
    therefore leave a lone ``\r`` bare (before Python 3.13), which readers take for the end of the row.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._writer = csv.writer(self, lineterminator="\r\n")

    def write(self, line: str) -> int:
        """Takes a line from Python's writer."""
        return self._handle.write(line.removesuffix("\r\n") + "\n")

    def writerow(self, values: Iterable[Any]) -> None:
        """Writes one row."""
        self._writer.writerow(values)


def json_text(value: Any, default: Callable[[Any], Any] = str) -> str:
    """A value as JSON in the sense of RFC 8259, which knows neither NaN nor infinity: null and text instead.

    Args:
        value: the value.
        default: makes something of what JSON has no form for, e.g. dates.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=default, allow_nan=False)
    except ValueError:
        return json.dumps(_plain(value), ensure_ascii=False, default=default, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
