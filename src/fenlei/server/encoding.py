"""The one thread that uses tokenizers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fenlei.errors import FenleiError
from fenlei.server.passes import as_fenlei
from fenlei.server.terms import Draining

_log = logging.getLogger(__name__)


class EncodingThread:
    """Does one piece of work after the other, in the order in which they come."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fenlei-encode")
        self._stopped = False

    async def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """What ``work`` returns; cancelled before it begins, it never does.

        Raises:
            Draining: the thread has ended.
            FenleiError: whatever went wrong.
        """
        try:
            waiting = asyncio.get_running_loop().run_in_executor(self._thread, _guarded, work, *args)
        except RuntimeError:
            if self._stopped:
                raise Draining from None
            raise
        return await waiting

    def stop(self) -> None:
        """Ends the thread after the work in progress; what waits is done, too, but nobody need wait for it."""
        self._stopped = True
        self._thread.shutdown(wait=False)


def _guarded(work: Callable[..., Any], *args: Any) -> Any:
    try:
        return work(*args)
    except FenleiError:
        raise
    except BaseException as error:  # libraries in Rust panic with what is no Exception
        _log.error("a text could not be tokenized: %s", type(error).__name__)
        _log.debug("", exc_info=error)
        raise as_fenlei(error, "the tokenizer") from None
