"""What the adapters of the trackers' libraries have in common. They run in a worker process only."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

Say = Callable[[str], None]
"""Takes a warning for the user."""

_NOT_IN_PROJECT = re.compile(r"[^0-9a-zA-Z_\-+.]+")
_MOST_PROJECT = 100


class Tracker(Protocol):
    """What an adapter offers; making it opens the run. Everything may raise, hang or crash.

    Attributes:
        where: how the user looks at the run, one line.
        background_s: seconds that finishing may take once training has ended.
    """

    where: str
    background_s: float

    def log(self, values: dict[str, float], step: int) -> None:
        """Records numbers."""

    def log_image(self, name: str, path: str, step: int, caption: str) -> None:
        """Records a picture."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Records a text."""

    def finish(self, status: str) -> None:
        """Ends the run as ``completed``, ``failed`` or ``interrupted``."""


def require(package: str, remedy: str) -> None:
    """Stops with the command that installs a missing package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"not installed: {remedy}")


def project_name(name: str, say: Say) -> str:
    """A name that every tracker takes: 1 to 100 of ``0-9 a-z A-Z _ - + .``; other characters become ``-``."""
    clean = _NOT_IN_PROJECT.sub("-", name).strip("-.")[:_MOST_PROJECT]
    if not clean:  # e.g. all Chinese: two such projects must stay apart
        clean = f"fenlei-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    if clean != name:
        say(f"project names hold only 0-9 a-z A-Z _ - + . (100 at most): {name!r} becomes {clean!r}")
    return clean


def quoted(path: Path) -> str:
    """A path for a command line to copy."""
    return shlex.quote(str(path)) if os.name != "nt" else f'"{path}"'


def as_markdown(text: str) -> str:
    """Text as a Markdown block that keeps its lines; its fence is longer than any inside it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
