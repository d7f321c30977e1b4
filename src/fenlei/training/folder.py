"""The run folder before training: is it free, or can the run in it go on?"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fenlei.artifact import read_json
from fenlei.config import RunConfig
from fenlei.durable import InUse, locked, sweep, write_json, write_text
from fenlei.errors import TrainingError
from fenlei.training.checkpoints import Checkpoint, CheckpointStore
from fenlei.training.data import TrainingData

_IDENTITY = "run.json"
# what may change between a start and its resume; everything else would make the checkpoint mean something else
_FREE_TRAIN_SETTINGS = (
    "epochs", "max_steps", "learning_rate", "weight_decay", "warmup_fraction", "scheduler", "max_grad_norm",
    "gradient_checkpointing", "logging_steps", "save_steps", "keep_checkpoints", "eval_steps", "early_stopping",
)  # fmt: skip


def open_run(config: RunConfig, run_dir: Path, *, resume: bool) -> Checkpoint | None:
    """Finds out, before any data is read or written, whether a run can begin or go on here.

    Returns:
        The checkpoint to resume from; None for a fresh run.

    Raises:
        TrainingError: the folder is a file or holds a run already, or there is nothing whole to resume.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise TrainingError(f"{run_dir}: is a file; the run folder needs a name of its own (--out)")
    store = CheckpointStore(run_dir / "checkpoints", config.train.keep_checkpoints)
    latest, damaged = store.latest(), store.damaged()
    if resume:
        if latest is None:
            why = f" ({'; '.join(damaged)}); start again in another --out" if damaged else "; train without --resume"
            raise TrainingError(f"{run_dir}: nothing to resume: no whole checkpoint{why}")
        return latest
    if latest is not None or damaged or (run_dir / "classifier").exists():
        raise TrainingError(f"{run_dir}: holds a run already; choose another --out, or go on with it by --resume")
    return None


def check_same_run(config: RunConfig, data: TrainingData, run_dir: Path) -> None:
    """On resume: holds the settings and data against what was noted at the start.

    Raises:
        TrainingError: model, prompt, adapter, labels or training rows are not those of the run.
    """
    # runs of earlier versions do not say: they had none
    identity, stored = _identity(config, data), {"model.quantization": "none", **read_json(run_dir / _IDENTITY)}
    # a run that began before there was this setting had its default
    stored = {"prompt.answer": "name", **stored}
    changed = [key for key in identity if stored.get(key) != identity[key]]
    if changed:
        listed = "; ".join(f"{key} was {_short(stored.get(key))}, is {_short(identity[key])}" for key in changed)
        raise TrainingError(
            f"{run_dir}: cannot go on: {listed}. Resume with the settings and data of the run, "
            "or start a new one in another --out"
        )


def note_run(config: RunConfig, data: TrainingData, run_dir: Path) -> None:
    """Writes down what the run is made of, its settings and its identity, and removes what a crash left behind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for folder in (run_dir, run_dir / "report"):
        sweep(folder)
    for unfinished in run_dir.glob(".classifier-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    CheckpointStore(run_dir / "checkpoints", config.train.keep_checkpoints).tidy()
    write_json(run_dir / _IDENTITY, _identity(config, data))
    write_text(run_dir / "config.yaml", config.to_yaml())


@contextmanager
def sole_user(run_dir: Path) -> Iterator[None]:
    """Keeps a second process from training in the same run folder; a killed process holds nothing.

    Where the system or the disk has no such locks (Windows, some network disks), nothing is kept from anybody.

    Raises:
        TrainingError: another process is training here.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run_dir))
        except InUse:
            raise TrainingError(
                f"{run_dir}: another process is training here; wait for it, or choose another --out"
            ) from None
        yield


def _identity(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    train = config.train.model_dump(mode="json")
    digest = hashlib.sha256()
    for example in data.train:
        row = [example.text, example.label, list(example.candidates or ())]
        digest.update(json.dumps(row, ensure_ascii=True).encode())
    identity: dict[str, Any] = {
        "model.spec": config.model.spec,
        "model.quantization": config.model.quantization,
        "data.candidates": config.data.candidates,
        "labels": list(data.labels.names),
        "training rows": f"{len(data.train)} rows, sha256 {digest.hexdigest()[:16]}",
    }
    for group, values in (("prompt", config.prompt), ("lora", config.lora)):
        identity.update({f"{group}.{k}": v for k, v in values.model_dump(mode="json").items()})
    identity.update({f"train.{k}": v for k, v in train.items() if k not in _FREE_TRAIN_SETTINGS})
    return identity


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
