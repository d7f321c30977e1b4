"""The Hugging Face Trainer, with dev scores by label scoring and checkpoints that are whole or absent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from fenlei.config import RunConfig
from fenlei.errors import TrainingError
from fenlei.training.checkpoints import CheckpointStore
from fenlei.training.dataset import TrainingSet
from fenlei.training.engine import StepAbandoned, TrainingEngine
from fenlei.training.resume import ResumableTrainer
from fenlei.training.schedule import learning_rates


class ClassifierTrainer(ResumableTrainer):
    """Trains an adapter with the loss at answer positions.

    Args:
        engine: computes a step's gradients; a batch of the data loader is a whole optimizer step.
        store: where checkpoints go.
        score_dev: returns the dev metrics of the current weights, or None when it was cut short because the run is to
            stop; None without a dev set.
        **kwargs: as for the Trainer.
    """

    lr_scheduler: Any
    train_dataset: TrainingSet

    def __init__(
        self,
        *args: Any,
        engine: TrainingEngine,
        store: CheckpointStore,
        score_dev: Callable[[], dict[str, Any] | None] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.engine = engine
        self.store = store
        self.score_dev = score_dev
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate, with a warm-up whose first step trains."""
        if self.lr_scheduler is None:
            self.lr_scheduler = learning_rates(
                optimizer if optimizer is not None else self.optimizer,
                steps=num_training_steps,
                warm_up=self.args.get_warmup_steps(num_training_steps),
                shape=self.args.lr_scheduler_type.value,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Scores the dev set by its labels' probabilities, not by its loss."""
        if self.score_dev is None:
            return {}
        metrics = self.score_dev()
        if metrics is None:
            self.dev_due_at = self.state.global_step
            self.control.should_evaluate = False
            return {}
        self.dev_at, self.dev_due_at = (self.state.global_step, metrics), None
        flat = {f"eval_{k}": v for k, v in metrics.items() if isinstance(v, (int, float))}
        self.log(dict(flat))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, flat)
        return flat

    def training_step(self, model: Any, inputs: dict[str, Any], *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """One optimizer step's gradients; a loss that is not finite ends the run before it can reach the weights."""
        try:
            loss = self.engine.step(inputs["rows"])
        except StepAbandoned:
            self.save_before_this_step()
            raise
        self._require_finite("loss", loss)
        return torch.tensor(loss, device=self.args.device)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # accelerate's own set_epoch does not reach the data set where an epoch is resumed within
        self.train_dataset.begin_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate knows neither packed rows nor frozen weights."""
        return 0

    def engine_state(self) -> dict[str, Any]:
        """How steps are computed, for checkpoints."""
        return self.engine.state()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._require_finite("gradient norm", float(norm))
        return norm

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        last = self.store.latest()
        kept = f"the last good checkpoint is {last.path}" if last else "no checkpoint had been written yet"
        raise TrainingError(
            f"the {what} is {value} at step {self.state.global_step + 1}: training stopped, nothing was published, "
            f"{kept}. A smaller train.learning_rate (now {self.args.learning_rate:g}) is the usual cure"
        )


def training_arguments(config: RunConfig, run_dir: Path, device: torch.device) -> TrainingArguments:
    """The Trainer's arguments for a configuration."""
    train = config.train
    return TrainingArguments(
        output_dir=str(run_dir / "checkpoints"),
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.batch_size,  # the engine divides it into forward passes
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_fraction,  # a float below 1 is a share of all steps
        lr_scheduler_type=train.scheduler,  # ClassifierTrainer.create_scheduler takes its own of that name
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a NaN in the log while the step still runs
        # our own schedule decides when to score and save (callbacks.Schedule)
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        seed=train.seed,
        data_seed=train.seed,
    )
