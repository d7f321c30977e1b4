"""One training run, from configuration to classifier folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fenlei.artifact import ADAPTER, TOKENIZER, write_artifact, write_json
from fenlei.config import RunConfig
from fenlei.data import Example
from fenlei.errors import Interrupted, TrainingError
from fenlei.evaluation import evaluate_predictions
from fenlei.inference import Prediction, Predictor
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.loading import load_model, load_tokenizer, parameter_count, pick_device
from fenlei.modeling.sources import ModelFolder, resolve
from fenlei.prompting import PromptEncoder
from fenlei.tracking import Record, TrackerGroup, confusion_matrix_png, start_tracking
from fenlei.training.callbacks import TRACKED, EarlyStopping, Interruption, Reporter, Schedule
from fenlei.training.checkpoints import Checkpoint, CheckpointStore
from fenlei.training.data import TrainingData
from fenlei.training.dataset import AnswerCollator, TrainingSet, build_training_set, micro_batch_size
from fenlei.training.folder import check_same_run, note_run, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLES_SHOWN = 8


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
        TrainingError: the run folder is in use, there is nothing to resume, or a loss is not finite.
        Interrupted: Ctrl-C; a checkpoint was written.
        ModelError, ConfigError, DataError: see their modules.
    """
    console = console or Console(stderr=True, markup=False, highlight=False)
    started = time.monotonic()
    checkpoint = open_run(config, run_dir, resume=resume)
    store = CheckpointStore(run_dir / "checkpoints", config.train.keep_checkpoints)
    micro_batch_size(config, pick_device(config.model))
    folder = resolve(config.model.spec, cache_dir=config.model.cache_dir, offline=config.model.offline)
    tokenizer = load_tokenizer(folder.path, config.model)
    encoder = PromptEncoder(tokenizer, config.prompt, data.labels, config.data.candidates)
    rows = build_training_set(data.train, encoder, oversample=config.train.oversample, seed=config.train.seed)
    _say_data(console, data, rows, config)
    if resume:
        check_same_run(config, data, run_dir)

    session = _Session(config, data, run_dir, console, store, folder, tokenizer, encoder)
    session.load()
    note_run(config, data, run_dir)  # nothing is written before everything that can be refused has been
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
    ) -> None:
        self.config, self.data, self.run_dir, self.console = config, data, run_dir, console
        self.store, self.folder, self.tokenizer, self.encoder = store, folder, tokenizer, encoder

    def load(self) -> None:
        config = self.config
        base = load_model(self.folder.path, config.model)
        if config.train.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        self.model = add_adapter(base, config.lora, config.train.seed)
        trained, total = parameter_count(self.model)
        self.console.print(f"model {config.model.spec}: {total / 1e6:.0f} M parameters, {trained / 1e6:.2f} M trained")
        self.predictor = Predictor(
            self.model,
            self.encoder,
            pad_id=int(self.tokenizer.pad_token_id),
            batch_tokens=config.inference.batch_tokens,
        )
        self.base_model = {
            "spec": config.model.spec,
            "source": self.folder.source,
            "revision": self.folder.revision,
            "dtype": config.model.dtype,
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
        record, status = Record(self.run_dir / "metrics.jsonl"), "failed"
        try:
            steps = self._train(rows, checkpoint, record, trackers)
            best = self._take_best()
            classifier = self._save(self.run_dir / "classifier")
            dev = self._report("dev", self.data.dev, best.step, record, trackers)
            test = self._report("test", self.data.test, best.step, record, trackers)
            status = "completed"
        except Interrupted:
            status = "interrupted"
            raise
        except KeyboardInterrupt:  # after the last step: the checkpoints are all there
            status = "interrupted"
            raise self._interrupted() from None
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
        )

    def _train(self, rows: TrainingSet, checkpoint: Checkpoint | None, record: Record, trackers: TrackerGroup) -> int:
        from fenlei.training.trainer import ClassifierTrainer, training_arguments

        train = self.config.train
        arguments = training_arguments(self.config, self.run_dir, pick_device(self.config.model))
        reporter = Reporter(record, trackers, self.console, train.batch_size)
        stopping = EarlyStopping(train.early_stopping)
        with Interruption(self.console) as interruption:
            trainer = ClassifierTrainer(
                model=self.model,
                args=arguments,
                train_dataset=rows,
                data_collator=AnswerCollator(int(self.tokenizer.pad_token_id)),
                callbacks=[
                    Schedule(train, -(-len(rows) // train.batch_size), bool(self.data.dev)),
                    stopping,
                    interruption,
                    reporter,
                ],
                store=self.store,
                score_dev=self._score_dev if self.data.dev else None,
            )
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            except KeyboardInterrupt:
                raise self._interrupted() from None
            finally:
                reporter.close()
        steps = int(trainer.state.global_step)
        if interruption.requested and steps < trainer.state.max_steps:
            raise self._interrupted()
        if stopping.stopped_at is not None:
            self.console.print(f"stopped early at step {steps}: dev macro-F1 did not improve any more")
        return steps

    def _interrupted(self) -> Interrupted:
        last = self.store.latest()
        if last is None:
            return Interrupted("interrupted before the first checkpoint: nothing to resume")
        how = "fenlei train --out {} --resume" if self.config.data.train else "fit(..., out={!r}, resume=True)"
        return Interrupted(f"interrupted; saved at step {last.step}. Go on with: {how.format(str(self.run_dir))}")

    def _score_dev(self) -> dict[str, Any]:
        return self._score(self.data.dev)[0]

    def _score(self, examples: list[Example]) -> tuple[dict[str, Any], list[Prediction]]:
        start = time.monotonic()
        predictions = self.predictor.predict(examples)
        gold = [str(e.label) for e in examples]
        seconds = time.monotonic() - start
        return evaluate_predictions(gold, predictions, self.data.labels.names, seconds=seconds), predictions

    def _take_best(self) -> Checkpoint:
        from peft import load_peft_weights, set_peft_model_state_dict

        best = self.store.best()
        if best is None:
            raise TrainingError(f"{self.run_dir}: no checkpoint was written")
        set_peft_model_state_dict(self.model, load_peft_weights(str(best.path), device="cpu"))
        return best

    def _save(self, path: Path) -> Path:
        def save_weights(folder: Path) -> None:
            self.model.save_pretrained(str(folder / ADAPTER), safe_serialization=True)
            (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            self.tokenizer.save_pretrained(str(folder / TOKENIZER))

        return write_artifact(
            path,
            labels=self.data.labels.to_dict(),
            prompt=prompt_record(self.config, self.encoder),
            calibration={"method": "none", "temperature": 1.0},
            base_model=self.base_model,
            save_weights=save_weights,
        )

    def _report(
        self, part: str, examples: list[Example], step: int, record: Record, trackers: TrackerGroup
    ) -> dict[str, Any] | None:
        """Final metrics of one part: to the record, the trackers and ``report/``."""
        if not examples:
            return None
        metrics, predictions = self._score(examples)
        scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        report = self.run_dir / "report"
        report.mkdir(exist_ok=True)
        write_json(report / f"{part}.json", metrics)
        record.write(part, step, final=True, **scalars)
        if part == "test":  # the dev scores have been drawn on the way
            trackers.log({f"{part}/{k}": scalars[k] for k in TRACKED}, step)
        picture = confusion_matrix_png(
            metrics["confusion"],
            self.data.labels.names,
            report / f"confusion-{part}.png",
            title=f"{part} set",
        )
        trackers.log_image(f"{part}/confusion_matrix", picture, step, caption=f"{part}: rows right, columns predicted")
        trackers.log_text(f"{part}/samples", _samples(examples, predictions), step)
        return metrics


def prompt_record(config: RunConfig, encoder: PromptEncoder) -> dict[str, Any]:
    """Content of prompt.json: enough to build the same encoder again."""
    columns = ("text_column", "label_column", "candidates_column", "id_column")
    return {
        "prompt": config.prompt.model_dump(mode="json"),
        "candidates": encoder.candidates,
        "columns": {name: value for name in columns if (value := getattr(config.data, name)) is not None},
        # as rendered: some chat templates write today's date, and a tokenizer's template may change
        "chat": encoder.chat.to_dict(),
    }


def _samples(examples: list[Example], predictions: list[Prediction]) -> str:
    """A few predictions as text, the wrong ones first."""
    pairs = sorted(zip(examples, predictions, strict=True), key=lambda p: (p[0].label == p[1].label, p[1].probability))
    lines = [
        f"{'right' if e.label == p.label else 'WRONG'}  {p.label} ({p.probability:.3f}), label {e.label}: {e.text[:80]}"
        for e, p in pairs[:_SAMPLES_SHOWN]
    ]
    return "\n".join(lines)


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
