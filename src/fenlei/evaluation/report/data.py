"""What a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fenlei.data.example import Example
from fenlei.modeling.prediction import Prediction

# the steps of the ladder, from the cheapest on; one that is not given is shown as not run
RUNGS = ("majority", "tfidf", "zero_shot", "few_shot", "tuned")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Rung:
    """One step of the baseline ladder.

    Attributes:
        key: one of :data:`RUNGS`.
        accuracy: share of right answers; None where it was not run.
        accuracy_interval: its 95 % confidence interval.
        macro_f1: mean F1 of the classes.
        macro_f1_interval: its 95 % confidence interval.
        seconds: wall time of training and prediction.
        rows: rows that it answered, where these are fewer than all.
        note: why it was not run, or a remark; in English.
        notes: the same as keys and values, see :mod:`fenlei.evaluation.notes`; the page words them in its language.
    """

    key: str
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    macro_f1: float | None = None
    macro_f1_interval: Interval | None = None
    seconds: float | None = None
    rows: int | None = None
    note: str = ""
    notes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two rungs on the same rows.

    Attributes:
        first: the key of one rung.
        second: the key of the other one.
        metric: what is compared, e.g. ``accuracy``.
        difference: the figure of ``second`` less that of ``first``.
        interval: its 95 % confidence interval.
        p_value: of a paired test, where there is one.
        rows: rows that both answered.
    """

    first: str
    second: str
    metric: str
    difference: float
    interval: Interval | None = None
    p_value: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Row:
    """A labelled row and what the classifier says of it.

    Attributes:
        id: the row's own id or number.
        text: its whole text.
        label: the right label, as far as the data knows.
        predicted: what the classifier says.
        probabilities: probability of every candidate.
        abstained: whether the classifier declined to answer.
        truncated: whether it saw only a part of the text.
    """

    id: str
    text: str
    label: str
    predicted: str
    probabilities: Mapping[str, float]
    abstained: bool = False
    truncated: bool = False

    @classmethod
    def of(cls, example: Example, prediction: Prediction, label: str) -> Row:
        """A row from its example, its prediction and its right label."""
        return cls(
            id=example.id,
            text=example.text,
            label=label,
            predicted=prediction.label,
            probabilities=prediction.probabilities,
            abstained=prediction.abstained,
            truncated=prediction.truncated,
        )


@dataclass(frozen=True)
class LabelIssue:
    """A row whose label is probably wrong.

    Attributes:
        id: the row's own id or number.
        text: its text.
        given: the label in the data.
        suggested: the label that fits better.
        score: how well the given label fits, 0 to 1; the lowest come first.
        part: ``train``, ``dev`` or ``test``.
    """

    id: str
    text: str
    given: str
    suggested: str
    score: float
    part: str = "train"


@dataclass(frozen=True)
class Cost:
    """What training and prediction took; None where it was not measured.

    Attributes:
        train_seconds: wall time of training.
        resumed: whether ``train_seconds`` is only that since the run was resumed.
        steps: optimizer steps.
        train_rows: rows seen in training, every epoch counted.
        train_tokens: their tokens.
        peak_memory_bytes: most memory of the process.
        peak_gpu_bytes: most memory of the GPU.
        device: what it ran on, in English.
        texts_per_second: speed of prediction.
        tokens_per_text: mean length of a prompt.
        hourly_price: price of an hour of the machine.
        currency: what it is in.
        processor: kind of CPU, where it ran on one.
        threads: how many of its threads computed.
    """

    train_seconds: float | None = None
    resumed: bool = False
    steps: int | None = None
    train_rows: int | None = None
    train_tokens: int | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    device: str | None = None
    texts_per_second: float | None = None
    tokens_per_text: float | None = None
    hourly_price: float | None = None
    processor: str | None = None
    threads: int | None = None
    currency: str = ""

    @property
    def price_per_million(self) -> float | None:
        """Estimated price of a million texts on a machine that does nothing else."""
        if self.hourly_price is None or not self.texts_per_second:
            return None
        return self.hourly_price / 3600 / self.texts_per_second * 1e6

    @property
    def price_note(self) -> str | None:
        """The same as a sentence, with what is assumed."""
        if self.price_per_million is None:
            return None
        unit = f" {self.currency}" if self.currency else ""
        return (
            f"a million texts cost about {self.price_per_million:,.2f}{unit}: an estimate for a machine at "
            f"{self.hourly_price:g}{unit} an hour that does nothing else, at the {self.texts_per_second:,.2f} texts a "
            "second that were measured"
        )

    def at_speed_of(self, metrics: Mapping[str, Any] | None) -> Cost:
        """The same with the speed that metrics give, where none was measured otherwise."""
        return replace(self, texts_per_second=self.texts_per_second or (metrics or {}).get("texts_per_second"))


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; parts that are None or empty are left out or shown as not run.

    Attributes:
        title: what it is a report of, e.g. the run's name.
        part: ``test``, ``dev``, or the name of a file.
        labels: the label set.
        metrics: of :func:`fenlei.evaluation.evaluate_predictions` on these rows; None where nothing was scored.
        rows: the rows with their predictions.
        dev: metrics of the dev set beside those of a test set.
        curve: lines of metrics.jsonl.
        rungs: the baseline ladder.
        comparisons: paired comparisons of its rungs.
        label_issues: probable label errors; None where nobody looked for them.
        cost: what it took.
        config: the full configuration.
        base_model: which model the classifier is made of, as in its manifest.
        versions: library -> version.
        created: when the classifier was made, ISO 8601.
        predictions: where all rows are in full, relative to the report.
    """

    title: str
    part: str
    labels: Sequence[str]
    metrics: Mapping[str, Any] | None = None
    rows: Sequence[Row] = ()
    dev: Mapping[str, Any] | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    rungs: Sequence[Rung] = ()
    comparisons: Sequence[Comparison] = ()
    label_issues: Sequence[LabelIssue] | None = None
    cost: Cost | None = None
    config: Mapping[str, Any] | None = None
    base_model: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    predictions: str = ""
