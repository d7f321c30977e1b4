"""Work done ahead: the next item is made while the caller is busy with this one."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def one_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in the same order, the next one being made in a thread; never more than one ahead.

    What making an item raises comes up where the item would have come. Closing the iterator waits for the thread, so
    ``contextlib.closing`` it where the caller may leave early.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting = pool.submit(next, source, _END)
        while (item := waiting.result()) is not _END:
            waiting = pool.submit(next, source, _END)
            yield item  # type: ignore[misc]
