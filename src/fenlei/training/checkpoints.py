"""Checkpoints of a run: ``checkpoints/step-00000100`` is whole or absent.

A checkpoint is put together in a staging folder, JSON and safetensors only. Everything is forced to disk, the manifest
``checkpoint.json`` with size and sha256 of every file last, and one rename publishes the folder. Only then are older
ones removed. The best one by dev macro-F1 is always kept. Whatever instant a crash picks, what is listed afterwards is
whole; a checkpoint that was damaged since is passed over, and :meth:`CheckpointStore.damaged` says which and why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fenlei.artifact import read_json, sha256_of, write_json
from fenlei.durable import (
    disk_full_message,
    fsync,
    fsync_tree,
    is_disk_full,
    remove_folder,
    replace_folder,
    sweep,
)
from fenlei.errors import ArtifactError, TrainingError

MANIFEST = "checkpoint.json"
FORMAT = 2
_SUFFIXES = (".json", ".safetensors")
_NAME = re.compile(r"step-(\d{8})")
_ASIDE = re.compile(r"\.step-(\d{8})\.old")
_digests: dict[tuple[int, ...], str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        dev: dev metrics at that step, or None when the dev set was not scored there.
        dev_due: the dev set should have been scored there, but the run was told to stop.
        engine: what the training engine wants to find again, as JSON.
        files: the files of the checkpoint, by their path in it.
    """

    path: Path
    step: int
    dev: dict[str, Any] | None
    dev_due: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: macro-F1 first, then the smaller log loss."""
        if self.dev is None:
            return (-1.0, 0.0)
        return (float(self.dev["macro_f1"]), -float(self.dev["log_loss"]))


class CheckpointStore:
    """The checkpoints folder of one run.

    Args:
        folder: ``<run>/checkpoints``.
        keep: how many of the newest are kept beside the best.

    Attributes:
        before_publish: called when a checkpoint is complete but not yet published, e.g. to force the record to disk.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.before_publish: Callable[[], None] | None = None

    @property
    def staging(self) -> Path:
        """Where a checkpoint is put together."""
        return self.folder / ".staging"

    def list(self) -> list[Checkpoint]:
        """All whole checkpoints, oldest first."""
        return [*self._survey()[0]]

    def damaged(self) -> tuple[str, ...]:
        """Which checkpoints are passed over, and why: one line each."""
        return self._survey()[1]

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        found = self.list()
        return found[-1] if found else None

    def best(self) -> Checkpoint | None:
        """The best by dev macro-F1; the newest when none was scored."""
        found = self.list()
        if not found or all(c.dev is None for c in found):
            return found[-1] if found else None
        return max(found, key=lambda c: (*c.rank, -c.step))

    @contextmanager
    def writing(self, step: int, needed: int | None = None) -> Iterator[Path]:
        """A folder to write a checkpoint into; ends with :meth:`publish`. What is not published is removed.

        Args:
            step: optimizer steps done.
            needed: bytes that the checkpoint will take, where known: for the message when the disk is full.

        Raises:
            TrainingError: the disk is full.
        """
        self.clear_staging()
        try:
            written = self.staging / f"checkpoint-{step}"
            written.mkdir(parents=True)
            yield written
        except Exception as error:
            if not is_disk_full(error):
                raise
            self.clear_staging()
            last = self.latest()
            kept = f"the last checkpoint is {last.path.name}" if last else "no checkpoint had been written yet"
            how = "go on with --resume" if last else "start again"
            text = disk_full_message(error, self.folder, "a checkpoint", needed)
            raise TrainingError(f"{text}; {kept}. Make room, then {how}") from error
        finally:
            self.clear_staging()

    def publish(
        self,
        written: Path,
        step: int,
        dev: dict[str, Any] | None,
        *,
        engine: dict[str, Any] | None = None,
        dev_due: bool = False,
    ) -> Checkpoint:
        """Turns a written folder into a checkpoint, then removes what need not be kept.

        Args:
            written: the folder, on the same disk; it is moved.
            step: optimizer steps done.
            dev: dev metrics, see :class:`Checkpoint`.
            engine: see :class:`Checkpoint`.
            dev_due: see :class:`Checkpoint`.

        Raises:
            TrainingError: the folder holds something else than JSON and safetensors.
            OSError: the disk did not take it; earlier checkpoints are as they were.
        """
        files = sorted(f.relative_to(written).as_posix() for f in written.rglob("*") if f.is_file())
        if foreign := [name for name in files if not name.endswith(_SUFFIXES)]:
            raise TrainingError(f"{written}: {', '.join(foreign)}: a checkpoint holds JSON and safetensors only")
        listed = {name: {"size": (written / name).stat().st_size, "sha256": _digest(written / name)} for name in files}
        fsync_tree(written)
        content = {
            "format": FORMAT,
            "step": step,
            "dev": dev,
            "dev_due": dev_due,
            "engine": engine or {},
            "files": listed,
        }
        write_json(written / MANIFEST, {**content, "sha256": _content_digest(content)})
        if self.before_publish is not None:
            self.before_publish()
        target = self.folder / f"step-{step:08d}"
        if target.exists() and target not in {c.path for c in self.list()}:
            # damaged: nothing to keep. What may stand aside for it since a crash stays until the new one is in place
            remove_folder(target)
        fsync(self.folder.parent)  # it may be the first one, and its folder new; after publishing nothing may fail
        replace_folder(written, target)
        self._prune()
        return Checkpoint(target, step, dev, dev_due, engine or {}, tuple(files))

    def tidy(self) -> None:
        """Puts in order what a crash left: half a checkpoint, one that stood aside, an old one too many."""
        self.clear_staging()
        for checkpoint in self.list():
            target = self.folder / f"step-{checkpoint.step:08d}"
            if checkpoint.path != target:
                remove_folder(target)  # damaged, or it would have been listed
                os.replace(checkpoint.path, target)
        self._prune()

    def clear_staging(self) -> None:
        """Removes what an interrupted write left."""
        shutil.rmtree(self.staging, ignore_errors=True)
        if self.folder.is_dir():
            sweep(self.folder)

    def _prune(self) -> None:
        found, best = self.list(), self.best()
        kept = {c.path for c in found[-self.keep :]} | ({best.path} if best else set())
        # what stood aside and was left by a crash after its successor was in place
        left = [p for p in self.folder.glob(".step-*.old") if p not in {c.path for c in found}]
        for path in [*left, *(c.path for c in found if c.path not in kept)]:
            with suppress(OSError):  # the new checkpoint is safe; an old one too many harms nobody
                remove_folder(path)

    def _survey(self) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
        """Whole checkpoints by step, and the reasons against the others."""
        whole: dict[int, Checkpoint] = {}
        reasons = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            # one that stood aside when its successor of the same step was to be put in place sorts first
            match = _ASIDE.fullmatch(path.name) or _NAME.fullmatch(path.name)
            if match is None or not path.is_dir():
                continue
            try:
                whole[int(match[1])] = self._read(path, int(match[1]))
            except ArtifactError as error:
                if _NAME.fullmatch(path.name):
                    reasons.append(str(error))
        return tuple(whole[step] for step in sorted(whole)), tuple(reasons)

    def _read(self, path: Path, step: int) -> Checkpoint:
        """Reads a manifest and holds every file against it.

        Raises:
            ArtifactError: something is missing, damaged, or of a kind that is not opened.
        """
        manifest = read_json(path / MANIFEST)
        _require_format(path, manifest)
        if manifest.pop("sha256", None) != _content_digest(manifest):
            raise ArtifactError(f"{path / MANIFEST}: damaged: its sha256 is not the one that was written")
        try:
            files: dict[str, dict[str, Any]] = dict(manifest["files"])
            found = Checkpoint(
                path,
                int(manifest["step"]),
                manifest["dev"],
                bool(manifest["dev_due"]),
                manifest["engine"],
                tuple(files),
            )
            expected = {name: (int(f["size"]), str(f["sha256"])) for name, f in files.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path / MANIFEST}: damaged: {error!r}") from None
        if found.step != step:
            raise ArtifactError(f"{path / MANIFEST}: belongs to step {found.step}, the folder says {step}")
        for name, (size, sha256) in expected.items():
            file = path / name
            if not name.endswith(_SUFFIXES) or not file.resolve().is_relative_to(path.resolve()):
                raise ArtifactError(f"{path}: lists {name}; a checkpoint holds JSON and safetensors only")
            if not file.is_file():
                raise ArtifactError(f"{path}: {name} is missing")
            if (actual := file.stat().st_size) != size:
                raise ArtifactError(f"{file}: damaged: {actual:,} bytes, {size:,} were written")
            if _digest(file) != sha256:
                raise ArtifactError(f"{file}: damaged: its sha256 is not the one that was written")
        return found


def _digest(file: Path) -> str:
    """sha256 of a file; read again only when the file was touched."""
    s = os.stat(file)
    key = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    if key not in _digests:
        _digests[key] = sha256_of(file)
    return _digests[key]


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require_format(path: Path, manifest: dict[str, Any]) -> None:
    found = manifest.get("format", 1)
    if found == FORMAT:
        return
    if found == 1:
        raise ArtifactError(
            f"{path}: was written by an earlier fenlei and holds pickles (optimizer.pt, rng_state.pth), which are not "
            "opened: that can run code. Finish the run with the fenlei that began it, or train anew"
        )
    raise ArtifactError(f"{path / MANIFEST}: format {found!r}, this fenlei reads {FORMAT}: pip install -U fenlei")
