"""How the Trainer saves and resumes here: exactly, and without pickle.

The Trainer's own checkpoints hold pickles, forget the loss that is not yet logged, take one step too many when a
finished run is resumed, and keep the settings of the start. The methods below replace its own of the same name, so
everything that is saved or loaded passes here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState

from fenlei.artifact import read_json
from fenlei.errors import ArtifactError, TrainingError
from fenlei.training.checkpoints import Checkpoint, CheckpointStore
from fenlei.training.space import checkpoint_bytes
from fenlei.training.state import (
    LossSum,
    RandomState,
    RunState,
    read_state,
    restore_optimizer,
    restore_scheduler,
    restore_weights,
    write_state,
)

TRAINER_STATE = "trainer_state.json"


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints go to a :class:`CheckpointStore`.

    Attributes:
        store: where checkpoints go.
        dev_at: the last step whose weights were scored on the dev set, and the metrics.
        dev_due_at: the step whose dev score was put off because the run was told to stop.
    """

    store: CheckpointStore
    control: TrainerControl
    dev_at: tuple[int, dict[str, Any]] | None = None
    dev_due_at: int | None = None
    _resumed: tuple[Checkpoint, RunState] | None = None
    # the generators as the last whole step left them, and whether they are what a checkpoint should hold
    _random: RandomState | None = None
    _in_step = False

    # saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.store.staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        dev = self.dev_at[1] if self.dev_at and self.dev_at[0] == step else None
        scalars = {k: v for k, v in dev.items() if isinstance(v, (int, float))} if dev else None
        with self.store.writing(step, checkpoint_bytes(self.model)) as folder:
            self.store_flos()
            self.model.save_pretrained(str(folder), safe_serialization=True)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            write_state(
                folder,
                model=self.model,
                optimizer=self.optimizer,
                scheduler=self.lr_scheduler,
                loss=LossSum(self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged),
                random=self._random if self._in_step else None,
            )
            self.state.save_to_json(str(folder / TRAINER_STATE))
            engine: dict[str, Any] = getattr(self, "engine_state", dict)()
            self.store.publish(folder, step, scalars, engine=engine, dev_due=self.dev_due_at == step)

    def save_before_this_step(self) -> None:
        """A checkpoint from within a step that is given up: of the last whole one, if that was not saved anyway."""
        last = self.store.latest()
        if self._random is None or (last is not None and last.step == self.state.global_step):
            return
        self._in_step = True
        self._save_checkpoint(self.model, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._random = RandomState.take()  # a new epoch draws from them before its first step

    # resuming: the Trainer calls these in this order

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint)
        checkpoint = next((c for c in self.store.list() if c.path == path), None)
        if checkpoint is None:
            raise TrainingError(f"{path}: is no whole checkpoint; {'; '.join(self.store.damaged())}")
        _require_trainer_state(checkpoint)
        restore_weights(self.model, path, checkpoint.files)
        self._resumed = (checkpoint, read_state(path))
        if checkpoint.dev is not None:
            self.dev_at = (checkpoint.step, checkpoint.dev)
        # a score that was put off is made up for before the first step
        self.args.eval_on_start = checkpoint.dev_due

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        found = super()._init_training_state(max_steps, *args)
        # the stored state brings the rhythm of the start along; the settings of this run count
        self.state.compute_steps(self.args, max_steps)
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            found, state = self._resumed
            restore_optimizer(state, model=self.model, optimizer=self.optimizer, folder=found.path)
            restore_scheduler(state, self.lr_scheduler)
            self._resumed = (found, dataclasses.replace(state, optimizer={}))  # as large as twice the trained weights

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Only float16 training would have one, and that is refused (requirements.py)."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is None:
            return
        _, state = self._resumed
        state.random.restore()
        self._tr_loss = torch.tensor(state.loss.since_log, device=self.args.device)
        self._total_loss_scalar = state.loss.logged
        self._globalstep_last_logged = state.loss.last_logged

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if not skip_scheduler:
            return super()._evaluate(trial, ignore_keys_for_eval)
        # before the first step (args.eval_on_start): the score that the interrupted run owed
        self._load_rng_state(None)
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        if metrics:
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self._read_again()
        elif self.dev_due_at is not None:  # told to stop again: the checkpoint still says that the score is due
            self.control.should_training_stop = True
        return metrics

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # the Trainer itself looks only after a step: a run that had ended would take one too many
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _read_again(self) -> None:
        """Scoring may have drawn random numbers: what was just saved is what the next step starts from."""
        latest = self.store.latest()
        assert latest is not None
        self._resumed = (latest, dataclasses.replace(read_state(latest.path), optimizer={}))


def _require_trainer_state(checkpoint: Checkpoint) -> None:
    """The Trainer reads this file itself and takes what it finds as it is.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    file = checkpoint.path / TRAINER_STATE
    content = read_json(file)
    known = {f.name for f in dataclasses.fields(TrainerState)}
    if TRAINER_STATE not in checkpoint.files or set(content) - known or content.get("global_step") != checkpoint.step:
        raise ArtifactError(f"{file}: damaged, or written by another version of transformers")
