"""What several commands share: quiet libraries, consoles, tables of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def error_console() -> Console:
    """Progress and notes go to stderr, so that stdout holds results only."""
    from fenlei.console import LastingConsole

    return LastingConsole(stderr=True, highlight=False, soft_wrap=True, markup=False)


def output_console() -> Console:
    """Results go to stdout. No markup: labels and paths may hold square brackets."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def activation() -> str | None:
    """What to type so that ``fenlei`` and ``swanlab`` are found; None where they are.

    ``make`` installs into a ``.venv`` that is on nobody's PATH.
    """
    import os
    import shutil
    import sys
    from pathlib import Path

    script = Path(sys.prefix) / "bin" / "activate"
    if shutil.which("fenlei") or not script.is_file():
        return None
    return f"source {os.path.relpath(script)}"


@contextmanager
def signals_stop() -> Iterator[None]:
    """Within, Ctrl-C, SIGTERM and SIGHUP raise ``StopNow``; the next one ends the process.

    For work whose state on disk is true at every instant. A signal that is ignored (``nohup``) stays ignored.
    """
    import os
    import signal
    import threading
    from types import FrameType

    from fenlei.errors import StopNow

    stopping = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        raise StopNow(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def quiet_libraries() -> None:
    """Silences the libraries' progress bars and notes; fenlei prints its own."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # deprecations inside transformers and peft are nothing that a user of fenlei could act on
    warnings.filterwarnings("ignore", category=FutureWarning)


def settings(**groups: Any) -> dict[str, Any]:
    """Nested settings from command-line options; options that were not given are left out.

    Args:
        **groups: ``part__field=value``; a name without ``__`` is a field of the run itself.
    """
    values: dict[str, Any] = {}
    for key, value in groups.items():
        if value is None:
            continue
        part, _, field = key.partition("__")
        if field:
            values.setdefault(part, {})[field] = value
        else:
            values[part] = value
    return values


def metrics_table(metrics: Mapping[str, Any], title: str) -> Table:
    """Per-class figures and the totals as a table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("precision", "recall", "f1", "rows"):
        table.add_column(name, justify="right")
    for label, row in metrics["per_class"].items():
        figures = (f"{row[k]:.3f}" for k in ("precision", "recall", "f1"))
        table.add_row(label, *figures, str(row["support"]), style=None if row["support"] else "dim")
    return table


def headline(metrics: Mapping[str, Any]) -> str:
    """The totals in one line."""
    speed = f", {metrics['texts_per_second']:.2f} texts/s" if metrics.get("texts_per_second") else ""
    return (
        f"{metrics['n']} rows: accuracy {metrics['accuracy']:.4f}, macro-F1 {metrics['macro_f1']:.4f}, "
        f"log loss {metrics['log_loss']:.4f}, ECE {metrics['ece']:.4f}{speed}"
    )
