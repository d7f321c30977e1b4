"""The run folder before training: is it free, or can the run in it go on?"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fenlei.artifact import read_json
from fenlei.config import RunConfig
from fenlei.durable import InUse, locked, make_folder, sweep, write_json, write_text
from fenlei.errors import TrainingError
from fenlei.modeling.loading import pick_device, pick_dtype
from fenlei.training.checkpoints import Checkpoint, CheckpointStore
from fenlei.training.data import TrainingData, rows_digest

_IDENTITY = "run.json"
_NOTED_LATER = ("model.dtype", "weights of the base model", "dev rows")
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


def identity_of(config: RunConfig, data: TrainingData, weights: Mapping[str, str]) -> dict[str, Any]:
    """What a run is made of: everything that must be the same when it goes on.

    Args:
        config: the settings.
        data: the rows; those of the dev set count too, because dev scores are compared over the whole run.
        weights: sha256 of the base model's files, by name: a folder or a hub's revision may have changed.
    """
    train = config.train.model_dump(mode="json")
    identity: dict[str, Any] = {
        "model.spec": config.model.spec,
        "model.quantization": config.model.quantization,
        "model.dtype": str(pick_dtype(config.model, pick_device(config.model))).removeprefix("torch."),
        "weights of the base model": _digest(sorted(weights.items())),
        "data.candidates": config.data.candidates,
        "labels": list(data.labels.names),
        "training rows": rows_digest(data.train),
        "dev rows": rows_digest(data.dev),
    }
    for group, values in (("prompt", config.prompt), ("lora", config.lora)):
        identity.update({f"{group}.{k}": v for k, v in values.model_dump(mode="json").items()})
    identity.update({f"train.{k}": v for k, v in train.items() if k not in _FREE_TRAIN_SETTINGS})
    return identity


def check_same_run(identity: Mapping[str, Any], run_dir: Path) -> None:
    """On resume: holds a run's identity against what was noted at the start.

    Raises:
        TrainingError: model, prompt, adapter, labels, training or dev rows are not those of the run.
    """
    # a run that began before there was a setting had its default, and what was not noted cannot be compared
    stored = {"model.quantization": "none", "prompt.answer": "name", **read_json(run_dir / _IDENTITY)}
    unknown = [key for key in _NOTED_LATER if key not in stored]
    changed = [key for key in identity if key not in unknown and stored.get(key) != identity[key]]
    if changed:
        listed = "; ".join(f"{key} was {_short(stored.get(key))}, is {_short(identity[key])}" for key in changed)
        raise TrainingError(
            f"{run_dir}: cannot go on: {listed}. Resume with the settings, model and data of the run, "
            "or start a new one in another --out"
        )


def note_run(config: RunConfig, identity: Mapping[str, Any], run_dir: Path) -> None:
    """Writes down a run's settings and its identity in its folder, and removes what a crash left behind."""
    for folder in (run_dir, run_dir / "predictions", run_dir / "report"):
        sweep(folder)
    for unfinished in run_dir.glob(".classifier-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    CheckpointStore(run_dir / "checkpoints", config.train.keep_checkpoints).tidy()
    write_json(run_dir / _IDENTITY, identity)
    write_text(run_dir / "config.yaml", config.to_yaml())


@contextmanager
def sole_user(run_dir: Path) -> Iterator[None]:
    """Keeps a second process from training in the same run folder; a killed process holds nothing.

    Where the system or the disk has no such locks (Windows, some network disks), nothing is kept from anybody.

    Raises:
        TrainingError: another process is training here.
    """
    make_folder(run_dir)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run_dir))
        except InUse:
            raise TrainingError(
                f"{run_dir}: another process is training here; wait for it, or choose another --out"
            ) from None
        yield


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, ensure_ascii=True).encode())
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
