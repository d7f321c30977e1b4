"""Metrics of predictions against the right labels; scikit-learn for all that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fenlei.modeling.prediction import Prediction

_SMALLEST = 1e-15  # log loss of a probability that underflowed; scikit-learn clips likewise


def evaluate_predictions(
    gold: Sequence[str], predictions: Sequence[Prediction], labels: Sequence[str], *, seconds: float = 0.0
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        gold: the right label of each row.
        predictions: what the classifier said, in the same order.
        labels: the label set; rows and columns of the confusion matrix.
        seconds: wall time that prediction took.

    Returns:
        ``n``, ``accuracy``, ``macro_f1`` and ``weighted_f1`` (over the classes that occur in gold or predictions),
        ``log_loss`` (nats), ``ece``, ``per_class``, ``confusion`` (rows: right label, columns: predicted),
        ``labels``, ``abstain_rate``, ``truncated``, ``seconds``, ``texts_per_second``.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    import numpy as np
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    if not gold or len(gold) != len(predictions):
        raise ValueError(f"{len(gold)} labels for {len(predictions)} predictions")
    said = [p.label for p in predictions]
    truth = list(gold)
    right = np.array([p.probabilities.get(label, 0.0) for p, label in zip(predictions, truth, strict=True)])
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, said, labels=list(labels), zero_division=0.0
    )
    return {
        "n": len(truth),
        "accuracy": float(accuracy_score(truth, said)),
        "macro_f1": float(f1_score(truth, said, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(truth, said, average="weighted", zero_division=0.0)),
        "log_loss": float(-np.log(np.clip(right, _SMALLEST, 1.0)).mean()),
        "ece": expected_calibration_error(
            [p.probability for p in predictions], [s == t for s, t in zip(said, truth, strict=True)]
        ),
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
        "abstain_rate": float(np.mean([p.abstained for p in predictions])),
        "truncated": int(sum(p.truncated for p in predictions)),
        "seconds": seconds,
        "texts_per_second": len(truth) / seconds if seconds > 0 else 0.0,
    }


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by rows (Guo et al. 2017, eq. 3).

    Args:
        confidence: probability of the predicted label, in [0, 1].
        correct: whether the prediction is right.
        bins: number of bins ``((i - 1) / bins, i / bins]``.
    """
    import numpy as np

    p, hit = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    which = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gap = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            gap += inside.mean() * abs(p[inside].mean() - hit[inside].mean())
    return float(gap)
