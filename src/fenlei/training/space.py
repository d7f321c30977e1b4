"""How much disk a run takes, and whether there is that much: better known before training than after hours of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fenlei.durable import free_bytes, megabytes, size_of
from fenlei.errors import TrainingError

# state of the generators, the log so far, configurations; and, in a classifier folder, the tokenizer
_SMALL_FILES = 2**20
_TOKENIZER = 16 * 2**20
_MOMENTS = 2  # AdamW's two averages, in the parameters' own format


def checkpoint_bytes(model: Any) -> int:
    """Bytes that a checkpoint of a model takes: the weights that are saved, and the optimizer's averages."""
    return _weight_bytes(model) + _MOMENTS * _trained_bytes(model) + _SMALL_FILES


def classifier_bytes(model: Any) -> int:
    """Bytes that the classifier folder takes."""
    return _weight_bytes(model) + _TOKENIZER


def require_space(model: Any, run_dir: Path, keep_checkpoints: int) -> None:
    """Refuses a run that the disk cannot hold.

    Checkpoints are pruned only after a new one is in place, so for a moment there are the newest ones, the best one and
    the new one. What a resumed run has on disk already counts as free: it will be replaced.

    Args:
        model: the model, ready to train.
        run_dir: the run folder; may be missing yet.
        keep_checkpoints: how many of the newest are kept.

    Raises:
        TrainingError: too little space; says how much is needed, for what, and how much there is.
    """
    each, most = checkpoint_bytes(model), keep_checkpoints + 2
    needed = most * each + classifier_bytes(model)
    free = free_bytes(run_dir) + size_of(run_dir / "checkpoints")
    if needed > free:
        raise TrainingError(
            f"{run_dir}: No space left for this run: it takes about {megabytes(needed)} ({most} checkpoints of "
            f"{megabytes(each)} (train.keep_checkpoints={keep_checkpoints}, the best one, the one being written) and "
            f"the classifier), {megabytes(free)} are free there. Make room, lower train.keep_checkpoints, or choose "
            "another --out"
        )


def _weight_bytes(model: Any) -> int:
    if hasattr(model, "peft_config"):  # only the adapter is saved
        return _trained_bytes(model)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _trained_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
