"""``metrics.jsonl``: one JSON object a line, with the operating system as soon as it is written.

The record and the checkpoints agree: a checkpoint is published only when the record up to it is on disk
(:meth:`Record.sync`), and a run that goes on from a checkpoint first takes back what was recorded after it
(:func:`rewind`). So the record of a run that was interrupted reads like that of one that was not.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fenlei.durable import write_bytes

_log = logging.getLogger(__name__)
_OWN_KEYS = ("time", "event", "step")
_TAIL_BLOCK = 65536


class Record:
    """Appends lines to ``metrics.jsonl``; a line is either whole on disk or not there.

    A line torn by a crash is cut off when the file is opened again, so every line stays valid JSON. Lines that a full
    disk does not take are reported once, kept, and written as soon as there is room; :meth:`sync` raises while there
    is none.

    Args:
        path: the file; made together with its folder when missing, continued when there.

    Raises:
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._warned = False
        self._waiting: list[bytes] = []
        # unbuffered: each line is with the operating system at once, so a killed process loses nothing
        self._file = self.path.open("ab", buffering=0)
        _cut_torn_line(self.path)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Appends one line.

        Args:
            event: ``train``, ``dev``, ``test`` or ``note``.
            step: optimizer steps done.
            values: what to record; NaN and infinities become ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
        """
        entry = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event}
        rest = {k: v for k, v in values.items() if k not in _OWN_KEYS}
        line = json.dumps(plain({**entry, "step": int(step), **rest}), ensure_ascii=False, allow_nan=False)
        with self._lock:
            if self._file.closed:
                return
            self._waiting.append(line.encode("utf-8", "backslashreplace") + b"\n")
            try:
                self._write_waiting()
            except OSError as error:
                if not self._warned:
                    self._warned = True
                    _log.warning("%s: cannot be written (%s); training goes on to the next save", self.path, error)

    def sync(self) -> None:
        """Forces everything written so far to disk.

        Raises:
            OSError: the disk does not take it; ``filename`` is set.
        """
        with self._lock:
            if self._file.closed:
                return
            try:
                self._write_waiting()
                os.fsync(self._file.fileno())
            except OSError as error:
                error.filename = str(self.path)
                raise

    def close(self) -> None:
        """Closes the file; later writes are ignored. Safe to call twice."""
        with self._lock:
            self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            self._write_whole(self._waiting[0])
            del self._waiting[0]

    def _write_whole(self, data: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            # half a line would swallow the next one
            os.ftruncate(self._file.fileno(), start)
            raise


def rewind(path: Path, step: int) -> int:
    """Takes back what a run recorded after a step, before it goes on from there.

    Final scores go too: they are taken again. Notes about the run itself, which carry step 0, stay.

    Args:
        path: the record; may be missing.
        step: the step of the checkpoint that the run goes on from; 0 for a fresh start.

    Returns:
        Number of lines taken back.

    Raises:
        OSError: the shortened record cannot be written; the old one is left as it was.
    """
    if not path.is_file():
        return 0
    lines = path.read_bytes().split(b"\n")
    torn = bool(lines.pop())  # no newline at its end; Record cuts it off, and here it is left out as well
    kept = [line for line in lines if not _is_after(line, step)]
    if torn or len(kept) != len(lines):
        write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def _is_after(line: bytes, step: int) -> bool:
    try:
        entry = json.loads(line)
        return bool(entry.get("final")) or int(entry["step"]) > step
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy and torch scalars as numbers, non-finite numbers as strings."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _non_finite(value)
    for method in ("tolist", "item"):  # numpy and torch
        convert = getattr(value, method, None)
        if callable(convert):
            return plain(convert())
    return str(value)


def _non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - _TAIL_BLOCK)
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep < end:
            _log.warning("%s: the last line was cut short by a crash and is removed", path)
            file.truncate(keep)
