"""A console whose reader may go away."""

from __future__ import annotations

import os
from contextlib import suppress

from rich.console import Console


class LastingConsole(Console):
    """Says what it can, and never ends the work.

    rich ends the process when its reader is gone (``fenlei train 2>&1 | head``) and passes on every other fault of
    writing, such as a log file on a full disk or a terminal that was closed.
    """

    def on_broken_pipe(self) -> None:
        """Nobody reads any more: nothing more is written."""
        self.quiet = True
        with suppress(OSError, ValueError):
            # what is stuck in the file's own buffer would turn the exit code into Python's 120
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            del self._buffer[:]  # or every later line would be written together with this one
