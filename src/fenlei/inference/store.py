"""Chunks onto disk, and the whole of them into the output's place: crash-proof at every step."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from fenlei.durable import fsync
from fenlei.errors import DataError
from fenlei.inference.journal import PUBLISHING, Counts, Journal
from fenlei.inference.output import GrowingFile, OutputPaths, writing
from fenlei.inference.writers import convert


class Store:
    """The staged predictions and bad rows of a run, and the journal that speaks for them.

    Args:
        paths: the files.
        journal: how far the run has come; for a new one, nowhere.
        expected_rows: about how many rows there will be, for the message when the disk is full.

    Attributes:
        journal: how far the run has come, as it stands on disk.
        disk_failed: something could not be written.
    """

    def __init__(self, paths: OutputPaths, journal: Journal, expected_rows: int | None = None) -> None:
        self.paths, self.journal = paths, journal
        self.disk_failed = False
        self._expected_rows = expected_rows
        self._staged: GrowingFile | None = None
        self._rejected: GrowingFile | None = None

    def __enter__(self) -> Store:
        try:
            with writing(self.paths, "the predictions"):
                if not self.journal.counts.read:
                    self.journal.write(self.paths.journal)  # first, so that no staged file is ever without one
                self._staged = GrowingFile(self.paths.staged, self.journal.staged)
                self._rejected = GrowingFile(self.paths.rejected_staged, self.journal.rejected)
                fsync(self.paths.staged.parent)
        except BaseException:
            self.__exit__(None, None, None)
            self.disk_failed = True
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._staged, self._rejected):
            if file is not None:
                file.close()
        self._staged = self._rejected = None

    def add(self, counts: Counts, consumed: str, lines: bytes, rejected: bytes) -> None:
        """Adds a chunk: its lines first, then the journal that counts them in.

        Args:
            counts: the chunk's rows.
            consumed: hash of the input up to and with this chunk.
            lines: predictions.
            rejected: bad rows.

        Raises:
            DataError: the disk is full or fails; the journal speaks of the chunk before.
        """
        assert self._staged is not None
        assert self._rejected is not None
        try:
            with writing(self.paths, "the rest of the predictions", self._needed(len(lines) + len(rejected))):
                self._staged.append(lines)
                staged = self._staged.force()
                bad = self.journal.rejected
                if rejected:
                    self._rejected.append(rejected)
                    bad = self._rejected.force()
                journal = self.journal.advanced(counts, consumed, staged, bad)
                journal.write(self.paths.journal)
                self.journal = journal
        except DataError:
            self.disk_failed = True
            raise

    def _needed(self, size: int) -> int | None:
        """About how many bytes are still to come: what there is so far, carried on."""
        if self._expected_rows is None or not self.journal.counts.read:
            return None
        done = self.journal.staged.size + self.journal.rejected.size
        left = max(0, self._expected_rows - self.journal.counts.read)
        return max(size, done * left // self.journal.counts.read)


def publish(paths: OutputPaths, journal: Journal, note: Callable[[str], None]) -> None:
    """Puts the whole output into its place and removes what the run kept beside it.

    A crash in between leaves a journal in the stage ``publishing``; every step from there on can be done twice.

    Args:
        paths: the files.
        journal: the journal after the last chunk.
        note: is told when something takes a while.

    Raises:
        DataError: the disk is full or fails, or an output came into being meanwhile.
    """
    with writing(paths, "the output", journal.staged.size or None):
        if journal.stage != PUBLISHING:
            if journal.counts.written and paths.ready != paths.staged:
                note(f"making {paths.shown.name}")
                convert(paths.staged, paths.ready, paths.suffix)
                fsync(paths.ready.parent)
            if paths.taken and not journal.overwrite:
                raise DataError(
                    f"{paths.taken}: came into being while the predictions were made; they are kept: "
                    "move it away, then go on with --resume"
                )
            replace(journal, stage=PUBLISHING).write(paths.journal)
        if not journal.counts.rejected:
            paths.rejected.unlink(missing_ok=True)  # of an older output, which is being replaced
        elif paths.rejected_staged.exists():
            os.replace(paths.rejected_staged, paths.rejected)
        if journal.counts.written and paths.ready.exists():
            os.replace(paths.ready, paths.out)
        for place, needed in ((paths.out, journal.counts.written), (paths.rejected, journal.counts.rejected)):
            if needed and not place.exists():
                raise DataError(f"{place}: was removed while it was put in its place; begin again with --overwrite")
        fsync(paths.out.parent)
        for path in paths.temporary()[1:]:
            path.unlink(missing_ok=True)
        paths.journal.unlink()
    with suppress(OSError):  # all is in its place; at worst the journal comes back, and the last steps are done again
        fsync(paths.out.parent)
