"""Checkpoints of a run: ``checkpoints/step-00000100`` is whole or absent.

The Trainer writes into a staging folder; the manifest ``checkpoint.json`` is written last and one rename publishes
the folder. Only then are older ones removed. The best one by dev macro-F1 is always kept.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fenlei.artifact import read_json, write_json
from fenlei.errors import ArtifactError

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        dev: dev metrics at that step, or None when the dev set was not scored there.
    """

    path: Path
    step: int
    dev: dict[str, Any] | None

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
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def staging(self) -> Path:
        """Where a checkpoint is put together."""
        return self.folder / ".staging"

    def list(self) -> list[Checkpoint]:
        """All whole checkpoints, oldest first; a folder with a missing or short file is passed over."""
        found = []
        for path in sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []:
            match = _NAME.fullmatch(path.name)
            if match and (manifest := _whole(path)) is not None:
                found.append(Checkpoint(path, int(match[1]), manifest.get("dev")))
        return found

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

    def publish(self, written: Path, step: int, dev: dict[str, Any] | None) -> Checkpoint:
        """Turns a written folder into a checkpoint, then removes what need not be kept."""
        # the Trainer pickles its arguments here; the run's config.yaml holds them in a form that cannot run code
        (written / "training_args.bin").unlink(missing_ok=True)
        sizes = {f.relative_to(written).as_posix(): f.stat().st_size for f in written.rglob("*") if f.is_file()}
        for name in sizes:
            _fsync(written / name)
        write_json(written / MANIFEST, {"step": step, "dev": dev, "files": sizes})
        target = self.folder / f"step-{step:08d}"
        if target.exists():  # the same step again after a resume
            shutil.rmtree(target)
        os.replace(written, target)
        _fsync(self.folder)
        self._prune()
        return Checkpoint(target, step, dev)

    def clear_staging(self) -> None:
        """Removes what an interrupted write left."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _prune(self) -> None:
        found, best = self.list(), self.best()
        for checkpoint in found[: -self.keep]:
            if best is None or checkpoint.path != best.path:
                shutil.rmtree(checkpoint.path, ignore_errors=True)


def _whole(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(path / MANIFEST)
        whole = all((path / name).stat().st_size == size for name, size in manifest["files"].items())
    except (ArtifactError, OSError, KeyError, AttributeError):
        return None
    return manifest if whole else None


def _fsync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
