"""One training run, from configuration to classifier folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fenlei.artifact import TOKENIZER, write_artifact
from fenlei.config import LEARNING_RATES, RunConfig
from fenlei.console import LastingConsole
from fenlei.data import Example
from fenlei.durable import fault_of_system, is_disk_full
from fenlei.errors import FenleiError, Interrupted, StopNow, TrainingError
from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.report import model_card
from fenlei.inference import Predictor
from fenlei.modeling.adapter import add_adapter, finish_training, save_weights
from fenlei.modeling.loading import load_model, load_tokenizer, parameter_count, pick_device
from fenlei.modeling.memory import checkpoint_activations, give_memory_back, ran_out
from fenlei.modeling.sources import ModelFolder, resolve
from fenlei.prompting import PromptEncoder
from fenlei.tracking import Record, TrackerGroup, start_tracking
from fenlei.tracking.record import rewind
from fenlei.training.callbacks import CutShort, EarlyStopping, Interruption, Reporter, Schedule
from fenlei.training.checkpoints import Checkpoint, CheckpointStore
from fenlei.training.data import TrainingData
from fenlei.training.dataset import TrainingRow, TrainingSet, build_training_set
from fenlei.training.findings import report_label_errors, report_ladder
from fenlei.training.folder import check_same_run, identity_of, note_run, open_run, sole_user
from fenlei.training.foresight import memory_warning
from fenlei.training.outcome import measure_cost, publish
from fenlei.training.report import Scored, calibrate, check_calibration, report_part
from fenlei.training.requirements import require_gradients, require_one_gpu
from fenlei.training.space import classifier_bytes, disk_fault, disk_full, require_space, told_how_much
from fenlei.training.state import restore_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# outside of a step's forward and backward passes, which are made smaller instead: loading, the optimizer
_OUT_OF_MEMORY = (
    "out of memory ({error}): take a smaller model, lora.method=lora instead of full, or model.quantization=nf4 "
    "on a GPU. What was saved stays: go on with --resume where there is a checkpoint"
)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        run_dir: the run folder.
        classifier_dir: the classifier folder in it.
        dev: dev metrics of the saved weights; None without a dev set.
        test: test metrics; None without a test set.
        steps: optimizer steps done.
        best_step: the step whose weights were saved.
        seconds: wall time of this call.
        trackers: one line for each tracker: where its record is, or why there is none.
        predictor: the classifier in memory, ready to use.
        base_model: which base model the adapter belongs to, as in the manifest.
        ladder: what simpler classifiers reach, see :func:`fenlei.evaluation.ladder.build_ladder`.
    """

    run_dir: Path
    classifier_dir: Path
    dev: dict[str, Any] | None
    test: dict[str, Any] | None
    steps: int
    best_step: int
    seconds: float
    trackers: list[str]
    predictor: Predictor
    base_model: dict[str, Any]
    ladder: dict[str, Any] | None = None


def train_classifier(
    config: RunConfig,
    data: TrainingData,
    run_dir: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    before_training: Callable[[Predictor], None] | None = None,
) -> TrainResult:
    """Trains an adapter and saves the classifier folder.

    Args:
        config: the settings; written to ``config.yaml`` in full.
        data: the rows.
        run_dir: the run folder.
        resume: go on from the newest checkpoint in it.
        console: where progress goes; stderr by default.
        before_training: called with the untrained classifier, e.g. to measure zero-shot accuracy.

    Raises:
        TrainingError: the run folder is in use, there is nothing to resume, a loss is not finite, or the disk is full
            or fails.
        Interrupted: Ctrl-C or another signal to stop; a checkpoint was written.
        ModelError, ConfigError, DataError: see their modules.
    """
    console = console or LastingConsole(stderr=True, markup=False, highlight=False)
    store = CheckpointStore(run_dir / "checkpoints", config.train.keep_checkpoints)
    with Interruption(console) as interruption:
        try:
            return _run(config, data, run_dir, store, console, interruption, resume, before_training)
        except KeyboardInterrupt:
            raise _interrupted(config, run_dir, store, interruption) from None
        except Exception as error:
            if isinstance(error, FenleiError):
                raise
            if is_disk_full(error):
                raise disk_full(error, run_dir, store) from error
            if ran_out(error):
                raise TrainingError(_OUT_OF_MEMORY.format(error=str(error).split("\n")[0])) from error
            if (fault := fault_of_system(error)) is None:
                raise
            raise disk_fault(fault, run_dir, store) from error
        finally:
            give_memory_back()


def _run(
    config: RunConfig,
    data: TrainingData,
    run_dir: Path,
    store: CheckpointStore,
    console: Console,
    interruption: Interruption,
    resume: bool,
    before_training: Callable[[Predictor], None] | None,
) -> TrainResult:
    started = time.monotonic()
    open_run(config, run_dir, resume=resume)
    for line in store.damaged():
        console.print(f"passed over: {line}", style="yellow")
    require_gradients(config)
    require_one_gpu(pick_device(config.model))
    check_calibration(config.calibration, len(data.dev))
    folder = resolve(config.model.spec, cache_dir=config.model.cache_dir, offline=config.model.offline)
    tokenizer = load_tokenizer(folder.path, config.model)
    encoder = PromptEncoder(tokenizer, config.prompt, data.labels, config.data.candidates)
    rows = build_training_set(data.train, encoder, oversample=config.train.oversample, seed=config.train.seed)
    _say_data(console, data, rows, config)
    identity = identity_of(config, data, folder.weights_sha256())
    if resume:
        check_same_run(identity, run_dir)

    session = _Session(config, data, run_dir, console, store, folder, tokenizer, encoder, interruption)
    session.load()
    require_space(session.model, run_dir, config.train.keep_checkpoints)
    # nothing is written before everything that can be refused has been
    with told_how_much(session.model, run_dir, store), sole_user(run_dir):
        open_run(config, run_dir, resume=resume)  # another process may have been here meanwhile
        note_run(config, identity, run_dir)
        checkpoint = store.latest() if resume else None
        if before_training is not None:
            before_training(session.predictor)
        return session.run(rows, checkpoint, started)


class _Session:
    """The parts of one run that its stages share."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        run_dir: Path,
        console: Console,
        store: CheckpointStore,
        folder: ModelFolder,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PromptEncoder,
        interruption: Interruption,
    ) -> None:
        self.config, self.data, self.run_dir, self.console = config, data, run_dir, console
        self.store, self.folder, self.tokenizer, self.encoder = store, folder, tokenizer, encoder
        self.interruption = interruption

    def load(self) -> None:
        config = self.config
        base = load_model(self.folder.path, config.model)
        if config.train.gradient_checkpointing:
            checkpoint_activations(base)
        self.model = add_adapter(base, config.lora, config.train.seed)
        trained, total = parameter_count(self.model)
        self.console.print(f"model {config.model.spec}: {total / 1e6:.0f} M parameters, {trained / 1e6:.2f} M trained")
        rate = LEARNING_RATES.get(config.lora.method)
        if config.train.learning_rate == rate:
            self.console.print(
                f"learning rate {rate:g}: the default with lora.method={config.lora.method} (train.learning_rate)"
            )
        self.predictor = Predictor(
            self.model,
            self.encoder,
            pad_id=int(self.tokenizer.pad_token_id),
            inference=config.inference,
        )
        self.base_model = {
            "spec": config.model.spec,
            "source": self.folder.source,
            "revision": self.folder.revision,
            "dtype": config.model.dtype,
            "quantization": config.model.quantization,
            # a folder or GGUF file is found again from anywhere on this machine
            "path": str(self.folder.path.resolve()) if self.folder.source in ("folder", "gguf") else None,
            "sha256": self.folder.weights_sha256(),
        }

    def run(self, rows: TrainingSet, checkpoint: Checkpoint | None, started: float) -> TrainResult:
        trackers = start_tracking(
            self.config.tracking,
            self.run_dir,
            hyperparameters=self.config.model_dump(mode="json"),
            run_name=self.config.tracking.experiment or self.run_dir.name,
        )
        record, status = self._open_record(checkpoint), "failed"
        self.store.before_publish = record.sync
        try:
            began = time.monotonic()
            steps = self._train(rows, checkpoint, record, trackers)
            cost = measure_cost(rows, self.config, steps, time.monotonic() - began, resumed=checkpoint is not None)
            best = self._take_best()
            dev_rows = self._scored(self.data.dev)
            calibration = calibrate(dev_rows, self.config.calibration, record, best.step, self.console)
            self.predictor.calibration = calibration
            classifier = self._save(self.run_dir / "classifier")
            dev_rows = dev_rows.calibrated(calibration)
            dev = self._report("dev", dev_rows, best.step, record, trackers)
            # after everything that is chosen or fitted
            test_rows = self._scored(self.data.test)
            test = self._report("test", test_rows, best.step, record, trackers)
            ladder = self._compare(dev_rows, test_rows, steps, best.step, record, trackers)
            publish(self.run_dir, cost, best.step, self.console, trackers)
            record.sync()
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            record.write("note", 0, message=f"run {status}")
            trackers.finish(status)
        return TrainResult(
            run_dir=self.run_dir,
            classifier_dir=classifier,
            dev=dev,
            test=test,
            steps=steps,
            best_step=best.step,
            seconds=time.monotonic() - started,
            trackers=list(trackers.where),
            predictor=self.predictor,
            base_model=self.base_model,
            ladder=ladder,
        )

    def _compare(
        self, dev: Scored, test: Scored, steps: int, best_step: int, record: Record, trackers: TrackerGroup
    ) -> dict[str, Any] | None:
        folder = self.run_dir / "report"
        report_label_errors(dev, folder)
        return report_ladder(
            self.config,
            self.data,
            self.predictor,
            dev,
            test,
            steps=steps,
            best_step=best_step,
            folder=folder,
            record=record,
            trackers=trackers,
            console=self.console,
            progress=self.interruption.check,
        )

    def _train(self, rows: TrainingSet, checkpoint: Checkpoint | None, record: Record, trackers: TrackerGroup) -> int:
        from fenlei.training.engine import StepAbandoned, TrainingEngine
        from fenlei.training.trainer import ClassifierTrainer, training_arguments

        train = self.config.train
        engine = TrainingEngine(
            self.model,
            self.config,
            int(self.tokenizer.pad_token_id),
            checkpoint.engine if checkpoint else None,
            say=self.console.print,
            give_up=self.interruption.overdue,
        )
        engine.fit(rows.rows)
        if warning := memory_warning(self.model, rows.rows, engine.micro_batch_tokens):
            self.console.print(warning, style="yellow")
        self.console.print(f"computed: {engine.describe()}")
        record.write("note", checkpoint.step if checkpoint else 0, message=f"computed: {engine.describe()}")
        arguments = training_arguments(self.config, self.run_dir, pick_device(self.config.model))
        reporter = Reporter(record, trackers, self.console, train.batch_size)
        stopping = EarlyStopping(train.early_stopping)
        trainer = ClassifierTrainer(
            model=self.model,
            args=arguments,
            train_dataset=rows,
            data_collator=_whole_step,
            callbacks=[
                Schedule(train, -(-len(rows) // train.batch_size), len(self.data.dev)),
                stopping,
                self.interruption,
                reporter,
            ],
            engine=engine,
            store=self.store,
            score_dev=self._score_dev if self.data.dev else None,
        )
        try:
            with self.interruption.finishing_steps(), suppress(StepAbandoned):
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        finally:
            reporter.close()
        steps = int(trainer.state.global_step)
        if self.interruption.requested:
            raise StopNow(self.interruption.signal_number)
        if stopping.stopped_at is not None:
            self.console.print(f"stopped early at step {steps}: dev macro-F1 did not improve any more")
        return steps

    def _open_record(self, checkpoint: Checkpoint | None) -> Record:
        """The record as it was at the checkpoint: what came after it happens again."""
        path, step = self.run_dir / "metrics.jsonl", checkpoint.step if checkpoint else 0
        taken_back = rewind(path, step)
        record = Record(path)
        if checkpoint is not None:
            record.write("note", step, message=f"resumed; {taken_back} later lines taken back")
        return record

    def _score_dev(self) -> dict[str, Any] | None:
        try:
            self.interruption.check()
            dev = self._scored(self.data.dev)
        except CutShort:
            return None
        labels = self.data.labels.names
        return evaluate_predictions(dev.gold, dev.predictions, labels, seconds=dev.seconds, full=False)

    def _scored(self, examples: list[Example]) -> Scored:
        start = time.monotonic()
        predictions = self.predictor.predict(examples, progress=self.interruption.check) if examples else []
        return Scored(examples, predictions, time.monotonic() - start)

    def _take_best(self) -> Checkpoint:
        best = self.store.best()
        if best is None:
            raise TrainingError(f"{self.run_dir}: no checkpoint was written")
        restore_weights(self.model, best.path, best.files)
        finish_training(self.model)
        return best

    def _save(self, path: Path) -> Path:
        def save(folder: Path) -> None:
            save_weights(self.model, folder)
            self.tokenizer.save_pretrained(str(folder / TOKENIZER))

        labels, calibration = self.data.labels.to_dict(), self.predictor.calibration.to_dict()
        settings = self.config.model_dump(mode="json")
        name = self.run_dir.resolve().name
        return write_artifact(
            path,
            labels=labels,
            prompt=prompt_record(self.config, self.encoder),
            calibration=calibration,
            base_model=self.base_model,
            save_weights=save,
            needed=classifier_bytes(self.model),
            card=model_card(name, labels, self.base_model, config=settings, calibration=calibration),
        )

    def _report(
        self, part: str, scored: Scored, step: int, record: Record, trackers: TrackerGroup
    ) -> dict[str, Any] | None:
        if not scored.examples:
            return None
        labels, folder = self.data.labels.names, self.run_dir / "report"
        return report_part(part, scored, labels, self.predictor.calibration, folder, step, record, trackers)


def _interrupted(config: RunConfig, run_dir: Path, store: CheckpointStore, interruption: Interruption) -> Interrupted:
    last, number = store.latest(), interruption.signal_number
    if last is None:
        return Interrupted("interrupted before the first checkpoint: nothing to resume", number)
    how = "fenlei train --out {} --resume" if config.data.train else "fit(..., out={!r}, resume=True)"
    return Interrupted(f"interrupted; saved at step {last.step}. Go on with: {how.format(str(run_dir))}", number)


def prompt_record(config: RunConfig, encoder: PromptEncoder) -> dict[str, Any]:
    """Content of prompt.json: enough to build the same encoder again."""
    columns = ("text_column", "label_column", "candidates_column", "id_column")
    return {
        "prompt": config.prompt.model_dump(mode="json"),
        "candidates": encoder.candidates,
        "answers": config.inference.answers,  # what its scores, and so its calibration, are of
        "columns": {name: value for name in columns if (value := getattr(config.data, name)) is not None},
        # as rendered: some chat templates write today's date, and a tokenizer's template may change
        "chat": encoder.chat.to_dict(),
        # a label keeps its code, whatever a later version would choose
        **({"codes": encoder.codes} if encoder.codes else {}),
    }


def _whole_step(rows: list[TrainingRow]) -> dict[str, list[TrainingRow]]:
    """The data loader's batch is the rows of an optimizer step, as they are."""
    return {"rows": rows}


def _say_data(console: Console, data: TrainingData, rows: TrainingSet, config: RunConfig) -> None:
    counts = Counter(e.label for e in data.train)
    listed = ", ".join(f"{name} {counts.get(name, 0)}" for name in data.labels)
    console.print(
        f"{len(data.train)} training rows, {len(data.dev)} dev, {len(data.test)} test; "
        f"{len(data.labels)} labels: {listed}",
        highlight=False,
    )
    if any(data.rejected.values()):
        console.print(f"bad rows left out: {data.rejected} (see rejected*.jsonl)", style="yellow")
    if len(rows) != len(rows.rows):
        console.print(
            f"small classes are repeated: {len(rows)} rows an epoch (train.oversample={config.train.oversample})"
        )
    if rows.shortened:
        console.print(
            f"{rows.shortened} of {len(rows.rows)} texts are longer than prompt.max_length={config.prompt.max_length} "
            f"allows and were shortened ({config.prompt.truncation} kept); every answer is whole"
        )
