"""Every operation of this process below a folder, counted; at a chosen one the process dies or the disk is full.

Counted are: opening for writing (before it, and once the file is there and empty), writing, fsync, renaming, linking,
removing, making folders, whoever does it (Python's audit events), and writing safetensors files (their Rust code is not
audited). Writes are cut in the middle. What Python's own file objects write is not seen as it goes to disk: such a file
is killed absent, empty, or whole.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDS_SPACE = {"open", "write", "fsync", "os.mkdir", "os.rename", "os.link", "tensors"}


class Operations:
    """Counts the operations below a folder.

    Args:
        folder: where. ``watch`` is told each operation.
        at: number of the operation at which something happens; -1 for never.
        what: ``kill``: SIGKILL. ``full``: from there on, whatever needs space fails.
    """

    def __init__(self, folder: Path, at: int = -1, what: str = "kill", error: int = errno.ENOSPC) -> None:
        self.folder, self.at, self.what, self.error = str(folder), at, what, error
        self.log: list[str] = []
        self.watch: Callable[[str], None] | None = None

    def install(self) -> None:
        """For good: this process is thrown away afterwards."""
        import peft.peft_model
        import safetensors.torch
        import transformers.modeling_utils

        sys.addaudithook(self._audit)
        os.write = self._halved(os.write)
        os.fsync = self._whole("fsync", os.fsync)
        from fenlei.tracking.record import Record

        write_whole = Record._write_whole

        def write_line(record: Record, data: bytes) -> None:
            def halfway() -> None:
                record._file.write(data[: len(data) // 2])

            self.reach("write", str(record.path), halfway)
            write_whole(record, data)

        Record._write_whole = write_line
        save_file = safetensors.torch.save_file

        def save_tensors(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
            def halfway() -> None:
                save_file(tensors, filename, *args, **kwargs)
                os.truncate(filename, os.path.getsize(filename) // 2)

            try:
                self.reach("tensors", str(filename), halfway)
            except OSError as error:
                raise safetensors.SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None
            save_file(tensors, filename, *args, **kwargs)

        safetensors.torch.save_file = save_tensors
        peft.peft_model.safe_save_file = save_tensors
        transformers.modeling_utils.safe_save_file = save_tensors

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
            if not isinstance(path, int) and (writes or (mode and set(mode) & set("wax+"))):
                self.reach("open", os.fsdecode(path))
                self.reach("opened", os.fsdecode(path), lambda: os.open(path, flags, 0o666))
        elif event in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"):
            path = os.fsdecode(args[1] if event in ("os.rename", "os.link") else args[0])
            directory = args[-1]  # shutil.rmtree works relative to an open folder
            if isinstance(directory, int) and directory >= 0 and not os.path.isabs(path):
                path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
            if event != "os.mkdir" or not os.path.exists(path):
                self.reach(event, path)

    def _halved(self, write: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def halved(handle: int, data: Any) -> int:
            self.reach("write", self._path(handle), lambda: write(handle, bytes(data)[: len(data) // 2]))
            return write(handle, data)

        return halved

    def _whole(self, kind: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def whole(handle: int) -> None:
            self.reach(kind, self._path(handle))
            call(handle)

        return whole

    @staticmethod
    def _path(handle: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            return ""

    def reach(self, kind: str, path: str, halfway: Callable[[], Any] | None = None) -> None:
        """An operation is about to happen."""
        path = os.path.abspath(path)
        if path != self.folder and not path.startswith(self.folder + os.sep):
            return
        number = len(self.log)
        self.log.append(f"{kind} {os.path.relpath(path, self.folder)}")
        if self.watch is not None:
            self.watch(self.log[-1])
        if self.at < 0 or number < self.at:
            return
        if self.what == "kill":
            if halfway:
                self.at = -1
                halfway()
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in NEEDS_SPACE:
            if halfway:
                reached, self.at = self.at, -1
                halfway()
                self.at = reached
            raise OSError(self.error, os.strerror(self.error), path)
