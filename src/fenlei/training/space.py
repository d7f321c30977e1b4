"""How much disk a run takes, whether there is that much, and what is said where there is not, or where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fenlei.durable import disk_full_message, free_bytes, is_disk_full, megabytes, size_of
from fenlei.errors import FenleiError, TrainingError
from fenlei.training.checkpoints import CheckpointStore

# state of the generators, the log so far, configurations; and, in a classifier folder, the tokenizer
_SMALL_FILES = 2**20
_TOKENIZER = 16 * 2**20


def checkpoint_bytes(model: Any) -> int:
    """Bytes that a checkpoint of a model takes: the weights that are saved, and the optimizer's averages."""
    return _weight_bytes(model) + optimizer_bytes(model) + _SMALL_FILES


def optimizer_bytes(model: Any) -> int:
    """Bytes of AdamW's two averages, which are kept in the parameters' own format."""
    return 2 * _trained_bytes(model)


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
    needed = _run_bytes(model, keep_checkpoints)
    free = free_bytes(run_dir) + size_of(run_dir / "checkpoints")
    if needed > free:
        raise TrainingError(
            f"{run_dir}: No space left for this run: it takes about {megabytes(needed)} ({most} checkpoints of "
            f"{megabytes(each)} (train.keep_checkpoints={keep_checkpoints}, the best one, the one being written) and "
            f"the classifier), {megabytes(free)} are free there. Make room, lower train.keep_checkpoints, or choose "
            "another --out"
        )


@contextmanager
def told_how_much(model: Any, run_dir: Path, store: CheckpointStore) -> Iterator[None]:
    """Turns a disk that is full into an error that says how much the rest of the run takes.

    Raises:
        TrainingError: the disk is full.
    """
    needed = _run_bytes(model, store.keep)
    try:
        yield
    except Exception as error:
        if isinstance(error, FenleiError) or not is_disk_full(error):
            raise
        left = max(needed - size_of(run_dir), _SMALL_FILES)
        raise disk_full(error, run_dir, store, "the rest of the run", left) from error


def disk_full(
    error: BaseException, run_dir: Path, store: CheckpointStore, what: str = "the run", needed: int | None = None
) -> TrainingError:
    """What the user is told; arguments as for :func:`fenlei.durable.disk_full_message`."""
    how = "go on with --resume" if store.latest() else "start again"
    return TrainingError(f"{disk_full_message(error, run_dir, what, needed)}. Make room, then {how}")


def disk_fault(fault: OSError, run_dir: Path, store: CheckpointStore) -> TrainingError:
    """What the user is told of a disk that fails, became read-only or went away."""
    last = None
    with suppress(OSError):  # it may not be readable either
        last = store.latest()
    how = "no checkpoint can be found. Mend it, then start again"
    if last is not None:
        how = f"the last checkpoint is {last.path}. Mend it, then go on with --resume"
    return TrainingError(f"{fault.filename or run_dir}: {fault.strerror}: the run has stopped; {how}")


def _run_bytes(model: Any, keep_checkpoints: int) -> int:
    """Of the newest checkpoints, the best one, the one being written, and the classifier."""
    return (keep_checkpoints + 2) * checkpoint_bytes(model) + classifier_bytes(model)


def _weight_bytes(model: Any) -> int:
    if hasattr(model, "peft_config"):  # only the adapter is saved
        return _trained_bytes(model)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _trained_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
