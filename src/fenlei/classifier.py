"""TextClassifier: fit, predict, evaluate, save, load."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from fenlei.artifact import TOKENIZER, read_artifact, write_artifact
from fenlei.config import RunConfig
from fenlei.data import Example, LabelSet, ReadResult, read_examples
from fenlei.durable import size_of
from fenlei.errors import ArtifactError, DataError, FenleiError
from fenlei.inference.loading import load_predictor, stored_settings
from fenlei.inference.predictor import Predictor
from fenlei.modeling.calibration import Calibration, check_settings
from fenlei.modeling.prediction import Prediction

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from fenlei.inference.explain import Explanation
    from fenlei.modeling.shared import SharedBase
    from fenlei.training.run import TrainResult

Source = Union[str, Path, Sequence[str], Sequence[Example]]  # noqa: UP007


class TextClassifier:
    """An instruct model tuned to answer with one of your labels, with the exact probability of each.

    Args:
        model: model spec, see ``fenlei models list``.
        config: settings, as a :class:`RunConfig` or as nested values (``{"train": {"epochs": 1}}``).
        overrides: ``"part.field=value"`` strings, as on the command line.

    Raises:
        ConfigError: unknown settings or values that do not fit.

    Example:
        >>> clf = TextClassifier("qwen2.5-coder-0.5b").fit("train.jsonl")     # doctest: +SKIP
        >>> clf.predict(["国足今晚迎战韩国队"])                                 # doctest: +SKIP
        ['Sports']
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        config: RunConfig | Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        values = config.model_dump() if isinstance(config, RunConfig) else dict(config or {})
        if model is not None:
            values["model"] = {**(values.get("model") or {}), "spec": model}
        self.config = RunConfig.build(values, overrides=overrides)
        self.result: TrainResult | None = None
        self.manifest: dict[str, Any] = {}
        self._predictor: Predictor | None = None
        self._folder: Path | None = None

    @property
    def labels(self) -> LabelSet:
        """The label set.

        Raises:
            FenleiError: the classifier was neither fitted nor loaded.
        """
        return self._ready().encoder.labels

    @property
    def calibration(self) -> Calibration:
        """What makes probabilities of scores, and when a row is left unanswered."""
        return self._ready().calibration

    @property
    def classes_(self) -> list[str]:
        """The labels in the order of the columns of :meth:`predict_proba`."""
        return list(self.labels.names)

    def fit(
        self,
        train: Source | None = None,
        y: Sequence[str] | None = None,
        *,
        dev: Source | None = None,
        test: Source | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        console: Console | None = None,
    ) -> TextClassifier:
        """Trains an adapter; writes a run folder with the classifier in it.

        Args:
            train: file, folder or data set id; or texts with ``y``; or examples. ``config.data.train`` by default.
            y: the label of each text.
            dev: development data; split from train by default.
            test: test data; evaluated once at the end.
            out: run folder; ``runs/<name>-<time>`` by default.
            resume: go on from the newest checkpoint in ``out``.
            console: where progress is printed.

        Raises:
            FenleiError: one of its kinds, with what to do.
        """
        from fenlei.training.data import read_part, read_training_data, split_training_data
        from fenlei.training.folder import open_run
        from fenlei.training.run import train_classifier

        files = {"train": train, "dev": dev, "test": test}
        files = {role: source for role, source in files.items() if isinstance(source, (str, Path))}
        if y is not None and "train" in files:
            raise DataError("y goes with texts; a file brings its own labels")
        config = self.config.with_values({"data": {role: str(source) for role, source in files.items()}})
        run_dir = Path(out or config.out or default_run_dir(config))
        config = config.with_values({"out": str(run_dir)})
        open_run(config, run_dir, resume=resume)
        if train is None and dev is None and test is None:
            data = read_training_data(config, run_dir)
        else:
            parts: dict[str, list[Example]] = {}
            rejected: dict[str, int] = {}
            for role, source in (("train", train), ("dev", dev), ("test", test)):
                where = getattr(config.data, role) if source is None else files.get(role)
                if where is not None:
                    parts[role], rejected[role] = read_part(config, str(where), role, run_dir)
                else:
                    parts[role] = self._rows(source, y if role == "train" else None)
            data = split_training_data(config, **parts, rejected=rejected)
        self.result = train_classifier(config, data, run_dir, resume=resume, console=console)
        self.config = config
        self._predictor = self.result.predictor
        self._folder = self.result.classifier_dir
        self.manifest = read_artifact(self._folder).manifest
        return self

    def add_labels(self, names: Sequence[str], descriptions: Mapping[str, str] | None = None) -> TextClassifier:
        """A classifier that chooses among more labels, without training.

        It shares the model with this one, which stays as it is, so both can be used side by side and none changes its
        answers under another thread. The new labels come after the old ones in :attr:`classes_`; rows with candidates
        of their own keep those. :meth:`save` keeps the new labels.

        Args:
            names: the new labels.
            descriptions: what they mean (label -> text), for the prompts that show it.

        Raises:
            DataError: a label is there already or differs from one only in white space, width or case.
            ConfigError: a label becomes the same tokens as another one; no code is left (``prompt.answer=code``); or
                rows are left unanswered by a threshold that was chosen without the new labels.
        """
        predictor = copy.copy(self._ready())
        predictor.calibration.require_for_more_labels(self.config.calibration)
        predictor.encoder = predictor.encoder.with_labels(names, descriptions)
        added = copy.copy(self)
        added._predictor = predictor
        return added

    def classify(
        self,
        texts: Sequence[str] | Sequence[Example],
        *,
        candidates: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Label, probability of every candidate, and more, for each text.

        Args:
            texts: texts, or examples that bring their own candidates.
            candidates: choose among these labels only; all labels by default.
            progress: called with the number of texts done after each batch.

        Raises:
            DataError: a candidate is not in the label set, or a text is not a string.
        """
        predictor = self._ready()
        rows = self._rows(texts, None)
        if candidates is not None:
            names = tuple(self.labels.canonical(name) for name in candidates)
            return predictor.predict(rows, candidates=names, progress=progress)
        return predictor.predict(rows, progress=progress)

    def explain(self, text: str | Example, *, candidates: Sequence[str] | None = None) -> Explanation:
        """What each sentence of a text does to the probability of its label.

        Args:
            text: a text, or an example that brings its own candidates.
            candidates: choose among these labels only.

        Raises:
            DataError: a candidate is not in the label set, or the text is not a string.
        """
        from fenlei.inference.explain import explain

        (row,) = self._rows([text], None)
        names = None if candidates is None else tuple(self.labels.canonical(name) for name in candidates)
        return explain(self._ready(), row, candidates=names)

    def predict(self, texts: Sequence[str], *, candidates: Sequence[str] | None = None) -> list[str]:
        """The most probable label of each text; always one of the candidates."""
        return [p.label for p in self.classify(texts, candidates=candidates)]

    def predict_proba(self, texts: Sequence[str], *, candidates: Sequence[str] | None = None) -> np.ndarray:
        """Probabilities ``(N, C)``, columns in the order of :attr:`classes_`; 0 for labels that were no candidates."""
        import numpy as np

        found = self.classify(texts, candidates=candidates)
        names = self.classes_
        return np.array([[p.probabilities.get(name, 0.0) for name in names] for p in found]).reshape(
            len(found), len(names)
        )

    def evaluate(
        self, data: Source, y: Sequence[str] | None = None, *, rejected_path: str | Path | None = None
    ) -> dict[str, Any]:
        """Metrics on labelled data.

        Args:
            data: file, folder or data set id; or texts with ``y``; or examples.
            y: the label of each text.
            rejected_path: where bad rows of a file go when ``data.on_bad_row`` is ``skip``.

        Returns:
            The keys of :func:`fenlei.evaluation.evaluate_predictions`, and ``rejected``: the number of bad rows left
            out.

        Raises:
            DataError: no labelled row, or a label outside the label set.
        """
        from fenlei.evaluation import evaluate_predictions

        rows, gold, rejected = self._labelled(data, y, "test", rejected_path)
        predictor = self._ready()
        start = time.monotonic()
        predictions = predictor.predict(rows)
        seconds = time.monotonic() - start
        metrics = evaluate_predictions(
            gold, predictions, self.labels.names, seconds=seconds, calibration=predictor.calibration
        )
        return {**metrics, "rejected": rejected}

    def calibrate(
        self,
        data: Source,
        y: Sequence[str] | None = None,
        *,
        method: str = "temperature",
        signal: str | None = None,
        target_precision: float | None = None,
        target_coverage: float | None = None,
        threshold: float | None = None,
        rejected_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Fits probabilities and the threshold for abstaining anew, without training. :meth:`save` keeps it.

        Args:
            data: labelled rows that were neither trained on nor are kept for testing: file, folder or data set id; or
                texts with ``y``; or examples.
            y: the label of each text.
            method: ``temperature``, ``bias`` or ``none``; as all settings here, see
                :class:`fenlei.config_parts.CalibrationConfig`.
            signal: what confidence is; by default as it is.
            target_precision: share of right answers to reach by abstaining.
            target_coverage: share of rows to answer.
            threshold: abstain below this confidence. Without any of these three, every row is answered.
            rejected_path: where bad rows of a file go when ``data.on_bad_row`` is ``skip``.

        Returns:
            What :meth:`evaluate` says of these rows under the new calibration, and ``notes``: a few lines for people.

        Raises:
            ConfigError: settings that do not fit.
            DataError: too few rows, or a target that cannot be met on them; the calibration stays as it was.
        """
        from fenlei.evaluation import evaluate_predictions
        from fenlei.evaluation.calibration import fit_calibration
        from fenlei.modeling.prediction import recalibrate

        predictor = self._ready()
        values = {"method": method, "signal": signal or predictor.calibration.signal, "threshold": threshold}
        values |= {"target_precision": target_precision, "target_coverage": target_coverage}
        settings = RunConfig.build({"calibration": values}).calibration
        check_settings(settings)
        rows, gold, rejected = self._labelled(data, y, "dev", rejected_path)
        if len(rows) < settings.min_rows:
            raise DataError(f"{len(rows)} rows are too few to calibrate on; give {settings.min_rows} or more")
        start = time.monotonic()
        predictions = predictor.predict(rows)
        seconds = time.monotonic() - start
        fitted = fit_calibration(gold, predictions, settings)
        if fitted.unmet:
            raise DataError(f"{fitted.unmet}. The classifier stays as it was")
        predictor.calibration = fitted.calibration
        metrics = evaluate_predictions(
            gold,
            recalibrate(predictions, fitted.calibration),
            self.labels.names,
            seconds=seconds,
            calibration=fitted.calibration,
        )
        return {**metrics, "rejected": rejected, "notes": list(fitted.notes)}

    def read(
        self,
        source: str | Path,
        *,
        role: str = "test",
        need_label: bool = True,
        rejected_path: str | Path | None = None,
    ) -> ReadResult:
        """Reads a data file as this classifier's configuration says."""
        return read_examples(
            source,
            self.config.data,
            role=role,
            need_label=need_label,
            offline=self.config.model.offline,
            labels=self.labels,
            rejected_path=Path(rejected_path) if rejected_path is not None else None,
        )

    def save(self, path: str | Path) -> Path:
        """Writes the classifier folder: manifest, labels, prompt, calibration, adapter or model, tokenizer files.

        The calibration is the one in use: that of :meth:`calibrate`, or of the overrides that it was loaded with. The
        folder it was loaded from may be given; it is replaced as a whole.

        Raises:
            ArtifactError: the place is taken by something else.
        """
        from fenlei.evaluation.report import card_of_copy

        encoder = self._ready().encoder
        assert self._folder is not None
        artifact = read_artifact(self._folder)
        labels, prompt = encoder.labels.to_dict(), dict(artifact.prompt)
        if encoder.codes:
            prompt["codes"] = encoder.codes
        calibration = self._ready().calibration.to_dict()
        if Path(path).resolve() == artifact.path.resolve():
            if labels != artifact.labels:
                raise ArtifactError(f"{path}: holds the classifier without the added labels; save to another place")
            if calibration == Calibration.from_dict(artifact.calibration).to_dict():
                return artifact.path

        def save_weights(folder: Path) -> None:
            for part in (artifact.weights, TOKENIZER):
                shutil.copytree(artifact.path / part, folder / part)

        return write_artifact(
            path,
            labels=labels,
            prompt=prompt,
            calibration=calibration,
            base_model=artifact.manifest["base_model"],
            save_weights=save_weights,
            needed=size_of(artifact.path),
            card=card_of_copy(path, artifact, labels, calibration, self.config.model_dump(mode="json")),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        overrides: Sequence[str] = (),
        base: SharedBase | None = None,
    ) -> TextClassifier:
        """Opens a run folder or classifier folder.

        Args:
            path: the folder.
            model: where the base model is now, if its spec no longer leads to it. A classifier that was trained with
                ``lora.method=full`` needs none.
            overrides: settings of this machine, e.g. ``"model.device=cpu"``, ``"model.offline=true"``, and
                ``"calibration.threshold=0.8"`` to abstain below another confidence.
            base: the base model where it is in memory already, to share it with other classifiers.

        Raises:
            ArtifactError: the folder is not whole, or the base model is not the one it was trained on.
            ConfigError: unknown settings, or a ``calibration`` setting that needs dev rows.
            ModelError: the base model cannot be found or loaded.
        """
        artifact = read_artifact(path)
        self = cls(config=stored_settings(artifact, Path(path), model), overrides=overrides)
        self._predictor = load_predictor(artifact, self.config, base)
        self._folder = artifact.path
        self.manifest = artifact.manifest
        return self

    @property
    def predictor(self) -> Predictor:
        """Model, encoder and calibration; a FenleiError if the classifier was neither fitted nor loaded."""
        return self._ready()

    def _ready(self) -> Predictor:
        if self._predictor is None:
            raise FenleiError("this classifier is not trained yet: call fit(...), or TextClassifier.load(folder)")
        return self._predictor

    def _labelled(
        self, data: Source, y: Sequence[str] | None, role: str, rejected_path: str | Path | None
    ) -> tuple[list[Example], list[str], int]:
        """Rows, their labels, and how many bad rows were left out."""
        rejected = 0
        if isinstance(data, (str, Path)):
            found = self.read(data, role=role, rejected_path=rejected_path)
            rows, rejected = found.examples, len(found.rejected)
        else:
            rows = self._rows(data, y)
        if not rows:
            raise DataError("nothing to evaluate: no rows")
        return rows, [self._gold(row) for row in rows], rejected

    def _gold(self, row: Example) -> str:
        if row.label is None:
            raise DataError(f"{row.source or 'a row'}: evaluation needs a label")
        return self.labels.canonical(row.label)

    def _rows(self, source: Any, y: Sequence[str] | None) -> list[Example]:
        if source is None:
            return []
        if isinstance(source, (str, Path)):
            raise DataError("expected a list of texts, found one string: put it into a list, [text]")
        rows = list(source)
        if y is not None and len(y) != len(rows):
            raise DataError(f"{len(rows)} texts but {len(y)} labels")
        examples = []
        for i, item in enumerate(rows):
            if isinstance(item, Example):
                examples.append(item)
            elif isinstance(item, str):
                label = None if y is None else str(y[i])
                examples.append(Example(item, label, id=str(i), source=f"text {i}"))
            else:
                raise DataError(f"text {i}: expected a string or an Example, found {type(item).__name__}")
        return examples


def default_run_dir(config: RunConfig) -> Path:
    """``runs/<training file>-<time>``."""
    name = Path(config.data.train).stem if config.data.train else "run"
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
