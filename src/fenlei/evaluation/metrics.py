"""Metrics of predictions against the right labels; scikit-learn for all that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fenlei.evaluation.reliability import probability_metrics
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import Prediction, recalibrate


def evaluate_predictions(
    gold: Sequence[str],
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    *,
    seconds: float = 0.0,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        gold: the right label of each row.
        predictions: what the classifier said, in the same order.
        labels: the label set; rows and columns of the confusion matrix.
        seconds: wall time that prediction took.
        calibration: how the predictions were calibrated; adds the figures without it.

    Returns:
        ``n``, ``accuracy``, ``macro_f1`` and ``weighted_f1`` (over the classes that occur in gold or predictions),
        ``log_loss`` (nats), ``brier``, ``ece``, ``mce``, ``reliability``, ``per_class``, ``confusion`` (rows: right
        label, columns: predicted), ``labels``, ``abstain_rate``, ``answered``, ``answered_accuracy``,
        ``selective_accuracy``, ``risk_coverage``, ``aurc``, ``truncated``, ``seconds``, ``texts_per_second``. All but
        ``answered_accuracy`` and ``selective_accuracy`` count every row, abstained or not. With ``calibration`` also
        that, as in calibration.json, and ``uncalibrated``: ``accuracy``, ``log_loss``, ``brier``, ``ece``, ``mce``,
        ``reliability``, ``aurc`` of the same rows without temperature and bias.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    from fenlei.evaluation.selective import selective_metrics

    if not gold or len(gold) != len(predictions):
        raise ValueError(f"{len(gold)} labels for {len(predictions)} predictions")
    said, truth = [p.label for p in predictions], list(gold)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, said, labels=list(labels), zero_division=0.0
    )
    correct = [s == t for s, t in zip(said, truth, strict=True)]
    metrics = {
        "n": len(truth),
        "accuracy": float(accuracy_score(truth, said)),
        "macro_f1": float(f1_score(truth, said, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(truth, said, average="weighted", zero_division=0.0)),
        **probability_metrics(truth, predictions),
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": confusion_matrix(truth, said, labels=list(labels)).tolist(),
        "labels": list(labels),
        **selective_metrics([p.confidence for p in predictions], correct, [p.abstained for p in predictions]),
        "truncated": int(sum(p.truncated for p in predictions)),
        "seconds": seconds,
        "texts_per_second": len(truth) / seconds if seconds > 0 else 0.0,
    }
    if calibration is not None:
        metrics["calibration"] = calibration.to_dict()
        metrics["uncalibrated"] = _uncalibrated(truth, predictions, calibration)
    return metrics


def _uncalibrated(gold: list[str], predictions: Sequence[Prediction], calibration: Calibration) -> dict[str, Any]:
    from fenlei.evaluation.selective import area_under_risk_coverage

    plain = recalibrate(predictions, Calibration(signal=calibration.signal))
    correct = [p.label == label for p, label in zip(plain, gold, strict=True)]
    return {
        "accuracy": sum(correct) / len(correct),
        **probability_metrics(gold, plain),
        "aurc": area_under_risk_coverage([p.confidence for p in plain], correct),
    }
