"""The cache of converted models: an entry is complete, with a manifest and the right sizes, or it does not exist.

::

    <cache>/models/<key>/      weights, tokenizer, configuration and fenlei-model.json (written last)
    <cache>/staging/<key>/     what a pull has so far; kept when it is interrupted, so that the next one goes on
    <cache>/locks/<key>.lock   held while an entry is made
    <cache>/sha256.json        hashes of files outside the cache, remembered by path, size and time
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fenlei.artifact import write_json
from fenlei.errors import ModelError

MANIFEST = "fenlei-model.json"
FORMAT = 1
_BLOCK = 4 * 2**20
_SPARE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Entry:
    """A complete entry of the cache."""

    path: Path
    manifest: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(item["bytes"] for item in self.manifest["files"].values())


class ModelCache:
    """Finds, makes and publishes entries.

    Args:
        root: the cache folder; ``~/.cache/fenlei`` when not given. It is made when something is first written.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else Path.home() / ".cache" / "fenlei"
        self.root = self.root.absolute()
        if self.root.exists() and not self.root.is_dir():
            raise ModelError(f"model.cache_dir: expected a folder, found a file: {self.root}")

    @property
    def models(self) -> Path:
        """Where complete entries are."""
        return self.root / "models"

    def find(self, key: str) -> Entry | None:
        """The entry called ``key`` if it is complete."""
        return read_entry(self.models / key)

    def entries(self) -> list[Entry]:
        """All complete entries, by name."""
        if not self.models.is_dir():
            return []
        found = (read_entry(path) for path in sorted(self.models.iterdir()))
        return [entry for entry in found if entry is not None]

    def staging(self, key: str) -> Path:
        """The folder for unfinished work on ``key``; made if need be."""
        path = self.root / "staging" / key
        _make(path)
        return path

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keeps other processes from making the same entry; the lock of a killed process is free again.

        Args:
            key: the entry's name.
            on_wait: called once if another process holds the lock.
        """
        from filelock import FileLock, Timeout

        folder = self.root / "locks"
        _make(folder)
        lock = FileLock(str(folder / f"{key}.lock"))
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            if on_wait:
                on_wait()
            lock.acquire()
        except OSError as error:
            raise _not_writable(folder, error) from None
        try:
            yield
        finally:
            lock.release()

    def need_space(self, nbytes: int, what: str) -> None:
        """Checks the free disk space before work starts.

        Args:
            nbytes: bytes that will be written at most.
            what: for the message.

        Raises:
            ModelError: there is less.
        """
        _make(self.root)
        free = shutil.disk_usage(self.root).free
        if free < nbytes + _SPARE_BYTES:
            raise ModelError(
                f"{what} needs {size_text(nbytes + _SPARE_BYTES)} of disk space, but {self.root} has "
                f"{size_text(free)} left; free some or choose another place with --cache-dir / model.cache_dir"
            )

    def publish(self, staged: Path, key: str, manifest: dict[str, Any]) -> Entry:
        """Hashes the staged files, writes the manifest as the last of them and moves the folder into place.

        Args:
            staged: a folder on the cache's own disk, complete but for the manifest.
            key: the entry's name.
            manifest: what to record beside the file list.
        """
        files = {p.name: p for p in sorted(staged.iterdir()) if p.is_file() and p.name != MANIFEST}
        listed = {name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for name, p in files.items()}
        for path in files.values():
            _sync(path)
        write_json(staged / MANIFEST, {"format": FORMAT, **manifest, "files": listed})
        target = self.models / key
        _make(self.models)
        if target.exists():  # incomplete: a complete one would have been used
            doomed = self.root / "staging" / f"{key}.old-{uuid.uuid4().hex[:8]}"
            os.replace(target, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        os.replace(staged, target)
        entry = read_entry(target)
        if entry is None:
            raise ModelError(f"{target}: was changed while it was written; run the command again")
        return entry

    def clear_staging(self, key: str) -> None:
        """Drops the unfinished work on ``key``."""
        shutil.rmtree(self.root / "staging" / key, ignore_errors=True)


def read_entry(path: Path) -> Entry | None:
    """The entry in a folder if its manifest is there and every file has the size that it lists."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not manifest["files"]:
            return None
        for name, item in manifest["files"].items():
            if Path(name).name != name or (path / name).stat().st_size != item["bytes"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Entry(path, manifest)


def safe_name(text: str) -> str:
    """A folder name from free text: ASCII letters, digits, ``._-``; never empty, never hidden."""
    return re.sub(r"[^0-9A-Za-z._-]+", "-", text).strip(".-")[:80] or "model"


def sha256_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        advance: told how many more bytes were read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if advance:
                advance(len(block))
    return digest.hexdigest()


class HashMemo:
    """Remembers hashes of files outside the cache, so that a large file is read once and not at every start."""

    def __init__(self, cache_root: Path) -> None:
        self._file = cache_root / "sha256.json"

    def sha256(self, path: Path, advance: Callable[[int], None] | None = None) -> str:
        """Like :func:`sha256_of`; a file with the same path, size and modification time is not read again."""
        known = self.known(path)
        if known is not None:
            return known
        real = path.resolve()
        stamp = _stamp(real)
        digest = sha256_of(real, advance)
        with contextlib.suppress(OSError):  # only a memo: a cache that cannot be written costs time, nothing else
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {**self._read(), str(real): [*stamp, digest]})
        return digest

    def known(self, path: Path) -> str | None:
        """The remembered hash, if the file has not changed since."""
        real = path.resolve()
        found = self._read().get(str(real))
        if isinstance(found, list) and len(found) == 3 and found[:2] == _stamp(real) and isinstance(found[2], str):
            return found[2]
        return None

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def size_text(nbytes: int) -> str:
    """Bytes for people: ``491 MB``, ``1.1 GB``."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            value = nbytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{nbytes} bytes"


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None


def _not_writable(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"the model cache {path} cannot be written ({error.strerror or error}); "
        "choose another place with --cache-dir / model.cache_dir"
    )
