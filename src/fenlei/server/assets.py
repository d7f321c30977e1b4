"""The pages that the server brings along. They are read once, by fixed names; a request only names a key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Swagger UI 5.35.0 (Apache-2.0), unmodified, with a page of ours around it: FastAPI's own page loads it from a CDN
SWAGGER = ("docs.css", "docs.js", "swagger-ui-bundle.js", "swagger-ui.css")
LICENCES = ("swagger-ui.LICENSE", "swagger-ui.NOTICE", "swagger-ui-bundle.js.LICENSE.txt")


@dataclass(frozen=True)
class Asset:
    """A file to send.

    Attributes:
        content: its bytes.
        media_type: its Content-Type.
    """

    content: bytes
    media_type: str


@cache
def assets() -> dict[str, Asset]:
    """Everything under ``/assets/``, by name: the playground's parts and Swagger UI's."""
    page = [file for file in sorted((_HERE / "page").iterdir()) if file.suffix in _TYPES and file.suffix != ".html"]
    files = [*page, *(_HERE / "swagger" / name for name in SWAGGER)]
    found = {file.name: _read(file) for file in files}
    return found | {name: Asset((_HERE / "swagger" / name).read_bytes(), "text/plain; charset=utf-8")
                    for name in LICENCES}  # fmt: skip


@cache
def playground() -> Asset:
    """The page at ``/``."""
    return _read(_HERE / "page" / "index.html")


@cache
def docs() -> Asset:
    """The page at ``/docs``."""
    return _read(_HERE / "swagger" / "docs.html")


def _read(file: Path) -> Asset:
    return Asset(file.read_bytes(), _TYPES[file.suffix])
