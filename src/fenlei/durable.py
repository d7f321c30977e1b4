"""Writes that a crash cannot tear: a reader finds the old content or the new one, never half of one.

A file is written beside its place, forced to disk, and takes its place by one rename. A folder is put together
elsewhere and takes its place the same way. What is removed first gets another name, so that no half of it is ever
taken for the whole.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FULL = {
    getattr(errno, name): words
    for name, words in (("ENOSPC", "No space left on device"), ("EDQUOT", "Disk quota exceeded"))
    if hasattr(errno, name)
}
_TEMPORARY = ".tmp"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file durably.

    Raises:
        OSError: it cannot be written; ``filename`` is set.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # a failed write does not say which file it was, and nobody looks for the temporary one
            error.filename = str(path)
        raise
    fsync(path.parent)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text durably."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object durably, for people to read: indented, not escaped."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk.

    Raises:
        OSError: the disk did not take it. A folder that cannot be forced (Windows, some network disks) is let be.
    """
    folder = path.is_dir()
    try:
        # Windows forces only what is open for writing
        handle = os.open(path, os.O_RDWR if os.name == "nt" and not folder else os.O_RDONLY)
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno in _FULL or error.errno == errno.EIO:
            error.filename = error.filename or str(path)
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Forces every file and folder below, and the folder itself, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            fsync(Path(parent, name))
        fsync(Path(parent))


def make_folder(path: Path) -> None:
    """Makes a folder, its parents too, and forces their names to disk.

    Without that, a power cut may take a new folder away, with all that was so carefully written into it.
    """
    made = [path]
    for parent in path.absolute().parents:
        if parent.exists():
            break
        made.append(parent)
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync(folder.absolute().parent)


def replace_folder(source: Path, target: Path) -> None:
    """Puts a folder in the place of another one, or in a free place.

    A folder cannot replace another one in one step. The old one steps aside as :func:`aside` for the moment between
    two renames; whoever finds no ``target`` after a crash finds it there. It is removed once the new one is in place.
    ``source`` and its content must be on disk already (:func:`fsync_tree`).

    Raises:
        OSError: nothing has changed. On a disk that refuses to take the renames back, too, the old folder is left as
            :func:`aside`, with the new one in place or none; nothing is lost, and the next replacement tidies up.
    """
    old = aside(target)
    replaces = target.exists()
    if replaces:
        remove_folder(old)
        os.replace(target, old)
    placed = False
    try:
        os.replace(source, target)
        placed = True
        for parent in dict.fromkeys((target.parent, source.parent)):
            fsync(parent)
    except OSError:
        # a full disk may show here only; at worst the new one stays in place and the old one beside it
        with suppress(OSError):
            if placed:
                os.replace(target, source)
            if replaces:
                os.replace(old, target)
        raise
    with suppress(OSError):  # the new one is in place and on disk: it is not undone for what is only in the way
        remove_folder(old)


def aside(target: Path) -> Path:
    """Where :func:`replace_folder` keeps the folder that is being replaced."""
    return target.with_name(f".{target.name}.old")


def remove_folder(path: Path) -> None:
    """Removes a folder; a crash in between leaves it whole, or under a name that nobody looks for."""
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name.lstrip('.')}.removed")
    if path != doomed:
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what a crash left below a folder: half-removed folders and half-written files of this module."""
    for path in folder.glob(".*.removed"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".*.[0-9]*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def sweep_file(path: Path) -> None:
    """Removes what killed :func:`write_bytes` of this one file left beside it; nobody else may be writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*{_TEMPORARY}"):
        left.unlink(missing_ok=True)


class InUse(Exception):
    """Another process holds what was to be locked."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file or folder that is there; it ends with the process, even a killed one.

    Where the system or the disk has no such locks (Windows, some network disks), nothing is kept from anybody.

    Raises:
        InUse: another process holds it.
    """
    handle = _lock(path)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """:func:`locked` on a file that is made for it and removed at the end.

    Raises:
        InUse: another process holds it.
        OSError: it cannot be made.
    """
    while True:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        try:
            handle = _lock(path)
        except FileNotFoundError:  # its holder has just removed it
            continue
        if handle is None or _is_still(path, handle):
            break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever has it open already sees that it is gone
        if handle is not None:
            os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(path: Path) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InUse(str(path)) from None
        return None
    return handle


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk or a used-up quota is behind an error, whatever library it came through."""
    return _reason(error) is not None


def _reason(error: BaseException | None) -> str | None:
    while error is not None:
        text = str(error).lower()
        for number, words in _FULL.items():
            # libraries written in Rust pass the number on in their message only
            if getattr(error, "errno", None) == number or f"(os error {number})" in text or words.lower() in text:
                return words
        error = error.__cause__ or error.__context__
    return None


def fault_of_system(error: BaseException | None) -> OSError | None:
    """The operating system's error that an error is, or was raised from; None: it is something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        # libraries written in Rust pass the number on in their message only
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__
    return None


def disk_full_message(error: BaseException, path: Path, what: str, needed: int | None = None) -> str:
    """One sentence for the user: which path, how much is needed, how much is free.

    Args:
        error: what happened, see :func:`is_disk_full`.
        path: what was being written, where the error does not say so itself.
        what: what needs the space, e.g. ``"a checkpoint"``.
        needed: bytes that it takes, where known.
    """
    named = getattr(error, "filename", None)
    where = Path(os.fsdecode(named)) if named else path
    takes = f"{what} takes about {megabytes(needed)}" if needed else f"there is no room for {what}"
    return f"{where}: {_reason(error)}: {takes}, {megabytes(free_bytes(path))} are free there"


def free_bytes(path: Path) -> int:
    """Bytes free where ``path`` is, or will be."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
