"""Precision-recall curves, each class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fenlei.modeling.prediction import Prediction

if TYPE_CHECKING:
    import numpy as np

POINTS = 101


def precision_recall(
    gold: Sequence[str], predictions: Sequence[Prediction], labels: Sequence[str], points: int = POINTS
) -> dict[str, dict[str, Any] | None]:
    """For each class: how precise and how complete its rows are found, by the probability that is asked for.

    A row that had candidates of its own counts with probability 0 for all other labels.

    Args:
        gold: right labels.
        predictions: what the classifier said.
        labels: the label set.
        points: most points of a curve; spread evenly over the recall.

    Returns:
        label -> ``average_precision`` (scikit-learn's: the step-wise area, not interpolated), ``recall`` (rising),
        ``precision`` and ``threshold`` of the points; None for a class without rows.
    """
    import numpy as np
    from sklearn.metrics import average_precision_score, precision_recall_curve

    truth = np.array(gold, dtype=object)
    found: dict[str, dict[str, Any] | None] = {}
    for label in labels:
        positive = truth == label
        if not positive.any():
            found[label] = None
            continue
        score = np.array([p.probabilities.get(label, 0.0) for p in predictions])
        precision, recall, threshold = precision_recall_curve(positive, score, drop_intermediate=True)
        # the last point (recall 0, precision 1) belongs to no threshold
        kept = _spread(recall[:-1][::-1], points)
        found[label] = {
            "average_precision": float(average_precision_score(positive, score)),
            "recall": recall[:-1][::-1][kept].tolist(),
            "precision": precision[:-1][::-1][kept].tolist(),
            "threshold": threshold[::-1][kept].tolist(),
        }
    return found


def _spread(rising: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most so many values, spread evenly over their range; the ends are among them."""
    import numpy as np

    if len(rising) <= points:
        return np.arange(len(rising))
    wanted = np.linspace(rising[0], rising[-1], points)
    inner = np.searchsorted(rising, wanted).clip(0, len(rising) - 1)
    return np.unique(np.concatenate([[0], inner[1:-1], [len(rising) - 1]]))
