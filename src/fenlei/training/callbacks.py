"""What happens beside the steps: when to score and save, progress, signals, early stopping, records."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fenlei.config import TrainConfig
from fenlei.errors import StopNow
from fenlei.tracking import Record, TrackerGroup

_STEPS_BETWEEN_DEV_SCORES = 100
# Schedulers grant 30 s from SIGTERM to SIGKILL, and saving takes some of them.
_MOST_SECONDS_TO_FINISH_A_STEP = 10.0
# A signal to the process group that a wrapper (a task runner, a container's init) also passes on comes twice at once.
_SECONDS_OF_ONE_REQUEST = 1.0
# Rows trained between two scores, by row of the dev set: a text takes about 0.4 of a training row's time
# (docs/benchmarks.md), so scoring takes a tenth of the time of training.
_TRAINED_ROWS_A_DEV_ROW = 4
# what trackers draw of an evaluation; metrics.jsonl holds the rest
TRACKED = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "ece")


class Schedule(TrainerCallback):
    """Scores the dev set and saves by the run's own rhythm; a scored step is always saved.

    The rhythm depends on the number of rows and never on the clock: which checkpoint is the best one must not.

    Args:
        config: the training settings.
        steps_per_epoch: optimizer steps an epoch.
        dev_rows: rows of the dev set.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int, dev_rows: int) -> None:
        self._save_steps = config.save_steps
        cheap = -(-_TRAINED_ROWS_A_DEV_ROW * dev_rows // config.batch_size)
        every = config.eval_steps or min(steps_per_epoch, max(_STEPS_BETWEEN_DEV_SCORES, cheap))
        self._eval_steps = max(1, every) if dev_rows else 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Asks for a score, a checkpoint, or both."""
        step, last = state.global_step, state.global_step >= state.max_steps
        if self._eval_steps and (step % self._eval_steps == 0 or last):
            control.should_evaluate = control.should_save = True
        if step % self._save_steps == 0 or last:
            control.should_save = True
        return control


class EarlyStopping(TrainerCallback):
    """Ends training after ``patience`` dev scores without a better macro-F1 (ties: a smaller log loss is better)."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.stopped_at: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """A run that had ended already stays ended when it is resumed."""
        return self.on_evaluate(args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Looks at the whole history, which a resumed run brings along."""
        history = [(e["eval_macro_f1"], -e["eval_log_loss"]) for e in state.log_history if "eval_macro_f1" in e]
        if self._patience and history:
            since_best = len(history) - 1 - history.index(max(history))
            if since_best >= self._patience:
                self.stopped_at = state.global_step
                control.should_training_stop = True
        return control


class CutShort(Exception):
    """Scoring was cut short because the run is to stop."""


class Interruption(TrainerCallback):
    """Ctrl-C, SIGTERM (a scheduler wants the machine back) and SIGHUP (the terminal is gone).

    While steps are taken (:meth:`finishing_steps`), the first signal lets the step in progress finish if that takes a
    few seconds (:meth:`overdue`); a dev evaluation is cut short; a checkpoint is written and training ends. A second
    one ends the work at once, as does the first one outside of the steps: what is on disk is whole at every instant.
    The next one after that ends the process. Signals that come within a second of one of these are the same request.

    A signal that is ignored (``nohup``, a job in the background) stays ignored.

    Attributes:
        requested: the run is to stop after this step.
        signal_number: the signal that was received last; SIGINT before any.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._previous: dict[int, Any] = {}
        self._in_steps = False
        self._ending = False
        self._since = self._heard = float("-inf")
        self.requested = False
        self.signal_number = int(signal.SIGINT)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Within, the first signal lets the step in progress finish."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False

    def check(self, _done: int = 0) -> None:
        """Called between batches of a dev evaluation.

        Raises:
            CutShort: the run is to stop.
        """
        if self.requested and self._in_steps:
            raise CutShort

    def overdue(self) -> bool:
        """Whether the step in progress has had its time to finish since the run was told to stop."""
        return self.requested and time.monotonic() - self._since >= _MOST_SECONDS_TO_FINISH_A_STEP

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == getattr(signal, "SIGHUP", None):
            self._console.quiet = True  # there is nobody left to read; writing to the lost terminal would fail
        now = time.monotonic()
        if now - self._heard < _SECONDS_OF_ONE_REQUEST:
            return
        self.signal_number, self._heard = number, now
        if self._ending:
            os._exit(128 + number)
        if self.requested or not self._in_steps:
            self._ending = True
            raise StopNow(number)
        self.requested, self._since = True, now
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._say(f"{name}: finishing this step and saving; once more to stop at once (the last checkpoint stays)")

    def _say(self, text: str) -> None:
        # not through the console: the signal may have come in the middle of its own writing
        if not self._console.quiet:
            with suppress(OSError, ValueError):
                os.write(self._console.file.fileno(), f"\n{text}\n".encode())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Saves and stops when asked to."""
        if self.requested:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Asked to stop while scoring or saving: this checkpoint is the last one."""
        if self.requested:
            control.should_training_stop = True
        return control


class Reporter(TrainerCallback):
    """Passes what the Trainer logs to ``metrics.jsonl``, the trackers and the screen.

    Args:
        record: the always-on record.
        trackers: SwanLab and others.
        console: where progress goes: a bar with ETA on a terminal, plain lines elsewhere.
        rows_per_step: rows an optimizer step, for rows/s. These count all time since the start, scoring and saving too:
            it is what the remaining time is told by, and no measure of how fast a step is.
    """

    def __init__(self, record: Record, trackers: TrackerGroup, console: Console, rows_per_step: int) -> None:
        self._record, self._trackers, self._console = record, trackers, console
        self._rows_per_step = rows_per_step
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock and, on a terminal, the bar."""
        self._start = (time.monotonic(), state.global_step)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(
                "train", total=state.max_steps, completed=state.global_step, note="first step..."
            )
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Records one log entry."""
        if not logs:
            return
        values = {k: v for k, v in logs.items() if isinstance(v, (int, float))}
        if "loss" in values:
            rate = self._rate(state)
            values = {**values, "rows_per_second": rate, "epoch": state.epoch or 0.0}
            self._emit("train", state.global_step, values)
            self._say_train(state, values, rate)
        elif "eval_macro_f1" in values:
            dev = {k.removeprefix("eval_"): v for k, v in values.items() if k.startswith("eval_")}
            self._emit("dev", state.global_step, dev)
            self._console.print(
                f"step {state.global_step}: dev macro-F1 {dev['macro_f1']:.4f}, accuracy {dev['accuracy']:.4f}, "
                f"log loss {dev['log_loss']:.4f} ({dev['n']:.0f} rows)"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Notes the checkpoint."""
        self._record.write("note", state.global_step, message="checkpoint saved")

    def close(self) -> None:
        """Stops the bar; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, state: TrainerState) -> float:
        started, first_step = self._start
        seconds = time.monotonic() - started
        return (state.global_step - first_step) * self._rows_per_step / seconds if seconds > 0 else 0.0

    def _say_train(self, state: TrainerState, values: dict[str, float], rate: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, note=f"loss {values['loss']:.4f}  {rate:.2f} rows/s")
            return
        left = (state.max_steps - state.global_step) * self._rows_per_step / rate if rate > 0 else float("nan")
        self._console.print(
            f"step {state.global_step}/{state.max_steps}  loss {values['loss']:.4f}  "
            f"lr {values.get('learning_rate', 0.0):.2e}  {rate:.2f} rows/s  ETA {_clock(left)}"
        )

    def _emit(self, event: str, step: int, values: dict[str, float]) -> None:
        self._record.write(event, step, **values)
        drawn = values if event == "train" else {k: v for k, v in values.items() if k in TRACKED}
        self._trackers.log({f"{event}/{k}": float(v) for k, v in drawn.items()}, step)


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
