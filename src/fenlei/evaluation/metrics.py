"""Metrics of predictions against the right labels; scikit-learn for all that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fenlei.evaluation.curves import precision_recall
from fenlei.evaluation.reliability import probability_metrics, row_losses
from fenlei.evaluation.significance import LEVEL, SAMPLES, SEED, bootstrap_intervals, mean_interval, wilson_interval
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import Prediction, recalibrate

if TYPE_CHECKING:
    import numpy as np


def evaluate_predictions(
    gold: Sequence[str],
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    *,
    seconds: float = 0.0,
    calibration: Calibration | None = None,
    full: bool = True,
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        gold: the right label of each row.
        predictions: what the classifier said, in the same order.
        labels: the label set; rows and columns of the confusion matrix.
        seconds: wall time that prediction took.
        calibration: how the predictions were calibrated; adds the figures without it.
        full: with precision-recall curves and confidence intervals; off for scores on the way.

    Returns:
        ``n``, ``accuracy``, ``macro_f1`` and ``weighted_f1`` (over the classes that occur in gold or predictions),
        ``micro_f1`` (equals accuracy where every label is in the label set), ``mcc``, ``balanced_accuracy``,
        ``log_loss`` (nats), ``brier``, ``ece``, ``mce``, ``reliability``, ``per_class``, ``confusion`` (rows: right
        label, columns: predicted), ``labels``, ``abstain_rate``, ``answered``, ``answered_accuracy``,
        ``selective_accuracy``, ``risk_coverage``, ``aurc``, ``truncated``, ``seconds``, ``texts_per_second``. All but
        ``answered_accuracy`` and ``selective_accuracy`` count every row, abstained or not. With ``calibration`` also
        that, as in calibration.json, and ``uncalibrated``: ``accuracy``, ``log_loss``, ``brier``, ``ece``, ``mce``,
        ``reliability``, ``aurc`` of the same rows without temperature and bias. With ``full`` also
        ``average_precision`` (mean over the classes that occur) and ``precision_recall`` (see
        :func:`fenlei.evaluation.curves.precision_recall`), and ``intervals`` (see :func:`intervals`).

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    from fenlei.evaluation.selective import selective_metrics

    if not gold or len(gold) != len(predictions):
        raise ValueError(f"{len(gold)} labels for {len(predictions)} predictions")
    said, truth = [p.label for p in predictions], list(gold)
    correct = [s == t for s, t in zip(said, truth, strict=True)]
    metrics = {
        "n": len(truth),
        **label_metrics(truth, said, labels),
        **probability_metrics(truth, predictions),
        "labels": list(labels),
        **selective_metrics([p.confidence for p in predictions], correct, [p.abstained for p in predictions]),
        "truncated": int(sum(p.truncated for p in predictions)),
        "seconds": seconds,
        "texts_per_second": len(truth) / seconds if seconds > 0 else 0.0,
    }
    if calibration is not None:
        metrics["calibration"] = calibration.to_dict()
        metrics["uncalibrated"] = _uncalibrated(truth, predictions, calibration)
    if full:
        metrics["precision_recall"] = precision_recall(truth, predictions, labels)
        known = [c["average_precision"] for c in metrics["precision_recall"].values() if c is not None]
        if known:
            metrics["average_precision"] = sum(known) / len(known)
        metrics["intervals"] = intervals(truth, predictions)
    return metrics


def label_metrics(gold: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """The figures that need no probabilities.

    Args:
        gold: right labels, one or more.
        said: predicted labels, in the same order.
        labels: the label set.

    Returns:
        ``accuracy``, ``macro_f1``, ``micro_f1``, ``weighted_f1``, ``balanced_accuracy`` (mean recall of the classes
        that have rows), ``mcc`` (Matthews' correlation coefficient, -1 to 1), ``per_class``, ``confusion``.
    """
    import warnings

    from sklearn import metrics as sk

    truth, found, names = _indices(gold, said, labels)
    own = range(len(labels))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, found, labels=own, zero_division=0.0)
    with warnings.catch_warnings():  # a class that is never right, or the only one: no reason for doubt here
        warnings.simplefilter("ignore", UserWarning)
        balanced = float(sk.balanced_accuracy_score(truth, found))
        mcc = float(sk.matthews_corrcoef(truth, found))
    return {
        "accuracy": float(sk.accuracy_score(truth, found)),
        **{
            f"{kind}_f1": float(sk.f1_score(truth, found, average=kind, zero_division=0.0))
            for kind in ("macro", "micro", "weighted")
        },
        "balanced_accuracy": balanced,
        "mcc": mcc,
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": sk.confusion_matrix(truth, found, labels=range(len(names)))[: len(labels), : len(labels)].tolist(),
    }


def intervals(
    gold: Sequence[str], predictions: Sequence[Prediction], *, samples: int = SAMPLES, level: float = LEVEL
) -> dict[str, Any]:
    """Confidence intervals ``[low, high]`` of the main figures; see :mod:`fenlei.evaluation.significance`.

    Args:
        gold: right labels, one or more.
        predictions: what the classifier said.
        samples: number of bootstrap samples.
        level: coverage.

    Returns:
        ``level``, ``samples``, ``seed``; ``accuracy`` (Wilson); ``accuracy_bootstrap``, ``macro_f1``, ``weighted_f1``,
        ``balanced_accuracy``, ``mcc`` (bootstrap, stratified by the right label); ``log_loss`` (bootstrap over rows);
        None where all bootstrap samples are the same.
    """
    import numpy as np

    truth, said, names = _indices(gold, [p.label for p in predictions], ())
    found = bootstrap_intervals(truth, said, len(names), samples=samples, level=level)
    loss = row_losses(gold, predictions)
    return {
        "level": level,
        "samples": samples,
        "seed": SEED,
        "accuracy": list(wilson_interval(int(np.sum(truth == said)), len(truth), level)),
        "accuracy_bootstrap": _listed(found.pop("accuracy")),
        **{name: _listed(ends) for name, ends in found.items()},
        "log_loss": _listed(mean_interval(loss, samples=samples, level=level)),
    }


def _listed(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _indices(
    gold: Sequence[str], said: Sequence[str], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels as numbers (scikit-learn is ten times as slow with texts), those of the label set first."""
    import numpy as np

    index = {label: i for i, label in enumerate(labels)}
    truth, found = (np.array([index.setdefault(x, len(index)) for x in column]) for column in (gold, said))
    return truth, found, list(index)


def _uncalibrated(gold: list[str], predictions: Sequence[Prediction], calibration: Calibration) -> dict[str, Any]:
    from fenlei.evaluation.selective import area_under_risk_coverage

    plain = recalibrate(predictions, Calibration(signal=calibration.signal))
    correct = [p.label == label for p, label in zip(plain, gold, strict=True)]
    return {
        "accuracy": sum(correct) / len(correct),
        **probability_metrics(gold, plain),
        "aurc": area_under_risk_coverage([p.confidence for p in plain], correct),
    }
