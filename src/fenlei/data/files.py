"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
