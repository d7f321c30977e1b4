"""Where the server's log goes, and what never stands in it."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LIBRARIES = ("uvicorn", "uvicorn.error", "asyncio")


class PlainFormatter(logging.Formatter):
    """One line a record; of an exception only its kind and where it was: its message may hold what was sent."""

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Kind and place."""
        kind, _, trace = ei
        return f"{kind.__name__ if kind else 'exception'} at\n{''.join(traceback.format_tb(trace))}"


def set_up_logging() -> None:
    """Sends our log, and the warnings of the libraries below us, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(_FORMAT))
    logging.raiseExceptions = False  # a full disk behind stderr is no reason to fail
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fenlei").setLevel(logging.INFO)
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)


def note_loop_error(_loop: Any, context: dict[str, Any]) -> None:
    """For errors that nobody waits for: asyncio's own words would repeat the exception's message."""
    error = context.get("exception")
    place = "".join(traceback.format_tb(error.__traceback__)) if error is not None else ""
    kind = type(error).__name__ if error is not None else "no exception"
    logging.getLogger("fenlei.server").error("in the event loop: %s\n%s", kind, place)
