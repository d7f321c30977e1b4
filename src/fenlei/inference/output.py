"""The files of a bulk prediction: which they are, and how they grow, survive a crash and take their places.

For ``--out texts.csv`` the run keeps, beside it:

    texts.csv.journal            how far it has come (see :mod:`fenlei.inference.journal`)
    texts.csv.partial            predictions so far, one JSON line each
    texts.csv.rejected.partial   bad rows so far
    texts.csv.converted          the final form, made at the end (CSV and Parquet)
    texts.csv.lock               held by the process at work

At the end there are ``texts.csv``, and ``texts.csv.rejected.jsonl`` if rows were bad.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fenlei.data.readers import input_files
from fenlei.durable import InUse, disk_full_message, fsync, is_disk_full, lock_file, sweep_file
from fenlei.errors import ConfigError, DataError
from fenlei.inference.journal import PUBLISHING, Extent, Journal, read_journal

SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class OutputPaths:
    """The names of all files of one output.

    Attributes:
        shown: the output as the user wrote it, for messages.
        out: the output; a link is followed, so that it keeps pointing at the file it names.
    """

    shown: Path
    out: Path

    @classmethod
    def of(cls, out: Path) -> OutputPaths:
        """The names for ``--out``."""
        return cls(out, Path(os.path.realpath(out)))

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name + ending)

    @property
    def suffix(self) -> str:
        """``.jsonl``, ``.csv`` or ``.parquet``."""
        return self.out.suffix.lower()

    @property
    def journal(self) -> Path:
        """How far the run has come."""
        return self._beside(".journal")

    @property
    def staged(self) -> Path:
        """Predictions so far."""
        return self._beside(".partial")

    @property
    def rejected_staged(self) -> Path:
        """Bad rows so far."""
        return self._beside(".rejected.partial")

    @property
    def rejected(self) -> Path:
        """Where bad rows are in the end."""
        return self._beside(".rejected.jsonl")

    @property
    def ready(self) -> Path:
        """The file that takes the output's place."""
        return self.staged if self.suffix == ".jsonl" else self._beside(".converted")

    @property
    def taken(self) -> Path | None:
        """A file in a place that the output is to take."""
        return next((path for path in (self.out, self.rejected) if path.exists()), None)

    @property
    def lock(self) -> Path:
        """Held by the process at work."""
        return self._beside(".lock")

    def temporary(self) -> list[Path]:
        """What a finished or discarded run leaves nothing of; the journal first."""
        return [self.journal, *dict.fromkeys([self.staged, self.rejected_staged, self.ready])]


@dataclass(frozen=True)
class Output:
    """An output that this process alone works on.

    Attributes:
        paths: its files.
        journal: the run that is to go on; None for a new one.
        overwrite: an older output may be replaced.
    """

    paths: OutputPaths
    journal: Journal | None
    overwrite: bool


def check_output(source: str | Path, out: Path) -> OutputPaths:
    """Finds out before any work whether predictions can be written.

    Raises:
        DataError: unknown suffix, missing folder, or a file of the output is a file of the input.
    """
    if out.suffix.lower() not in SUFFIXES:
        near = difflib.get_close_matches(out.suffix.lower(), SUFFIXES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DataError(f"--out {out}: expected a name that ends in .jsonl, .csv or .parquet{hint}")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise DataError(f"--out {out}: is a folder; give a file name")
    paths = OutputPaths.of(out)
    if Path(source).expanduser().is_dir():
        if os.path.realpath(Path(source).expanduser()) == str(paths.out.parent):
            raise DataError(f"--out {out}: lies in the input folder and would be input itself; choose another folder")
        return paths
    for file in (paths.out, paths.rejected, *paths.temporary(), paths.lock):
        if file.exists() and any(os.path.samefile(file, name) for name in input_files(source)):
            raise DataError(f"--out {out}: {file.name} is the input; predictions would overwrite it")
    return paths


@contextmanager
def open_output(source: str | Path, out: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Output]:
    """Holds an output for this process, once nothing stands against a run.

    Args:
        source: the input.
        out: where predictions go.
        resume: go on with the unfinished run of this output.
        overwrite: an older output may be replaced, and an unfinished run be dropped.

    Raises:
        DataError: see :func:`check_output`; another process is at work; there is a finished or unfinished output and
            neither option says what to do; or there is nothing to resume.
        ConfigError: both options.
    """
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite begins again: leave one of the two out")
    paths = check_output(source, out)
    _find_run(paths, resume, overwrite)  # what can be refused is refused before the lock file is made
    with ExitStack() as stack:
        try:
            with writing(paths, "the lock file"):
                stack.enter_context(lock_file(paths.lock))
        except InUse:
            raise DataError(
                f"--out {out}: another process is writing it; wait for it, or choose another --out"
            ) from None
        sweep_file(paths.journal)
        yield Output(paths, _find_run(paths, resume, overwrite), overwrite)


def _find_run(paths: OutputPaths, resume: bool, overwrite: bool) -> Journal | None:
    out, unfinished = paths.shown, paths.journal.exists()
    if resume:
        if not unfinished and paths.out.exists():
            raise DataError(f"--out {out}: is complete, there is nothing to resume")
        if not unfinished:
            raise DataError(
                f"--out {out}: nothing to resume: there is no {paths.journal.name}; run it without --resume"
            )
        journal = read_journal(paths.journal, out)
        if paths.taken and not journal.overwrite and journal.stage != PUBLISHING:
            raise DataError(
                f"{paths.taken}: came into being while the run was interrupted; move it away, then --resume"
            )
        return journal
    if overwrite:
        return None
    if unfinished:
        raise DataError(
            f"--out {out}: an unfinished run is there ({paths.journal.name}): "
            "go on with it by --resume, or drop it and begin again by --overwrite"
        )
    if paths.taken:
        raise DataError(f"--out {out}: {paths.taken} exists already; choose another name, or replace it by --overwrite")
    return None


@contextmanager
def writing(paths: OutputPaths, what: str, needed: int | None = None) -> Iterator[None]:
    """Turns what the disk says into a message with what to do.

    Raises:
        DataError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        go_on = "go on with --resume" if paths.journal.exists() else "begin again"
        if is_disk_full(error):
            message = disk_full_message(error, paths.out, what, needed)
            raise DataError(f"{message}. What is done is kept: make room, then {go_on}") from error
        raise DataError(f"--out {paths.shown}: cannot write {what}: {error}; mend it, then {go_on}") from error


class GrowingFile:
    """A file that only grows, known by the length and hash of what is surely on disk.

    Args:
        path: the file.
        extent: what of it is valid; the rest, torn by a crash, is cut off.

    Raises:
        DataError: it is shorter than that, or its content is another one.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, extent: Extent) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._size = self._read(extent.size)
            if self._size != extent.size or (extent.sha256 and self._digest.hexdigest() != extent.sha256):
                raise DataError(
                    f"{path}: is not what the run left there ({extent.size} bytes by its journal); "
                    "begin again with --overwrite"
                )
            self._cut()
        except BaseException:
            os.close(self._handle)
            raise

    def _read(self, size: int) -> int:
        read = 0
        while read < size:
            block = os.read(self._handle, min(1 << 20, size - read))
            if not block:
                break
            self._digest.update(block)
            read += len(block)
        return read

    def _cut(self) -> None:
        os.ftruncate(self._handle, self._size)
        os.lseek(self._handle, self._size, os.SEEK_SET)

    def append(self, data: bytes) -> None:
        """Adds bytes at the end.

        Raises:
            OSError: not all of them could be written.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._handle, rest) :]
        self._digest.update(data)
        self._size += len(data)

    def force(self) -> Extent:
        """Forces the file to disk; what it is then."""
        os.fsync(self._handle)
        return Extent(self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._handle)


def discard(paths: OutputPaths) -> None:
    """Removes what an unfinished run left; the journal first, so that nothing is ever taken for a whole run.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in paths.temporary():
        path.unlink(missing_ok=True)
        if path == paths.journal:
            fsync(path.parent)
