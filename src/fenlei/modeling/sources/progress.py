"""Progress bars in bytes, on standard error so that standard output stays clean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Report = Callable[[int], None]
"""Told how many more bytes are done."""


class Bars:
    """Makes one bar a step, and says a line here and there.

    Args:
        show: whether anything is shown.
    """

    def __init__(self, show: bool) -> None:
        self.show = show

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Report]:
        """A bar from ``done`` to ``total`` bytes; yields the function that moves it on."""
        if not self.show:
            yield lambda _: None
            return
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(title, total=total, completed=done)
            yield lambda more: shown.advance(task, more)
            shown.update(task, completed=total)

    def say(self, text: str) -> None:
        """One line."""
        if self.show:
            from rich.console import Console

            Console(stderr=True).print(text, markup=False, highlight=False)
