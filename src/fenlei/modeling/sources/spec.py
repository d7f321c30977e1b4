"""What a model spec means, decided from its text and the local disk alone; no network, no import of a hub's library."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fenlei.errors import ModelError
from fenlei.modeling.sources.builtin import BUILTIN

Kind = Literal["builtin", "gguf", "folder", "modelscope", "huggingface", "hub"]

FORMS = (
    "expected ORG/NAME, ms:ORG/NAME[@REV], hf:ORG/NAME[@REV], a folder, a .gguf file, "
    f"or a built-in name ({', '.join(BUILTIN)})"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
_MAX_LENGTH = 4096
_PREFIXES: dict[str, Kind] = {"ms": "modelscope", "hf": "huggingface"}


@dataclass(frozen=True)
class Spec:
    """A model spec, taken apart. ``name`` is a built-in name or ORG/NAME; ``path`` is set for folders and files."""

    text: str
    kind: Kind
    name: str
    revision: str | None = None
    path: Path | None = None


def parse_spec(text: str) -> Spec:
    """Takes a spec apart.

    Args:
        text: what the user wrote.

    Raises:
        ModelError: it has none of the known forms, or names a path that is not there; the nearest known name or
            path is suggested.
    """
    if not isinstance(text, str) or not text.strip():
        raise ModelError(f"model: {FORMS}; found nothing")
    if len(text) > _MAX_LENGTH or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ModelError(f"model: {FORMS}; found {text[:60]!r}, which is too long or holds control characters")
    text = text.strip()
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _PREFIXES:
        return _hub(text, rest, _PREFIXES[prefix])
    if text in BUILTIN:
        return Spec(text, "builtin", text)
    if "://" in text:
        raise ModelError(f"model: {FORMS}; found the address {text!r}; for a hub write ms:ORG/NAME or hf:ORG/NAME")
    path = _expanded(text)
    if _exists(path):
        return _local(text, path)
    if _looks_like_path(text):
        raise ModelError(f"model: {path} does not exist{_nearest_path(path)}")
    if _HUB_NAME.fullmatch(text.partition("@")[0]):
        return _hub(text, text, "hub")
    raise ModelError(f"model: unknown name {text!r}{_nearest_name(text, path)}; {FORMS}")


def _hub(text: str, rest: str, kind: Kind) -> Spec:
    name, at, revision = rest.partition("@")
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise ModelError(f"model: expected ORG/NAME (letters, digits, . _ -), found {name!r} in {text!r}")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ModelError(f"model: expected a branch, tag or commit after @, found {revision!r} in {text!r}")
    return Spec(text, kind, name, revision or None)


def _local(text: str, path: Path) -> Spec:
    if path.is_dir():
        return Spec(text, "folder", path.name, path=path)
    if path.suffix.lower() == ".gguf":
        return Spec(text, "gguf", path.stem, path=path)
    hint = f"; give its folder: {path.parent}" if path.suffix == ".safetensors" else ""
    raise ModelError(f"model: {path} is a file, but only folders and .gguf files are models{hint}")


def _expanded(text: str) -> Path:
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # ~nobody
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that this system cannot have
        return False


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~", "\\"))
        or text.lower().endswith((".gguf", ".safetensors", "/"))
        or "\\" in text
        or text.count("/") > 1
        or re.match(r"[A-Za-z]:", text) is not None
    )


def _nearest_path(path: Path) -> str:
    """Names the sibling that looks most like the missing part of a path."""
    missing = path
    try:
        while not missing.parent.exists() and missing.parent != missing:
            missing = missing.parent
        names = sorted(p.name for p in missing.parent.iterdir())[:10_000]
    except (OSError, ValueError):
        return ""
    found = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {missing.parent / found[0]}?"
    return f" ({missing.parent} exists, {missing.name} does not)" if missing != path else ""


def _nearest_name(text: str, path: Path) -> str:
    lower = {name.lower(): name for name in BUILTIN}
    found = difflib.get_close_matches(text.lower(), lower, n=1, cutoff=0.5)
    found = found or [name for name in lower if len(text) > 2 and text.lower() in name][:1]
    return f"; did you mean {lower[found[0]]!r}?" if found else _nearest_path(path)
