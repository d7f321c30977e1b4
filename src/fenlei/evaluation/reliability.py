"""Whether probabilities mean what they say: log loss, Brier score, calibration errors, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fenlei.modeling.prediction import Prediction

if TYPE_CHECKING:
    import numpy as np

BINS = 15
_SMALLEST = 1e-15  # log loss of a probability that underflowed; scikit-learn clips likewise


def probability_metrics(gold: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """How good the probabilities are.

    Args:
        gold: the right label of each row, one or more rows.
        predictions: what the classifier said, in the same order.

    Returns:
        ``log_loss`` (nats), ``brier``, ``ece``, ``mce`` and ``reliability`` (see :func:`reliability_bins`), the last
        three of the predicted label's probability.
    """
    bins = reliability_bins(
        [p.probability for p in predictions], [p.label == label for p, label in zip(predictions, gold, strict=True)]
    )
    return {
        "log_loss": float(row_losses(gold, predictions).mean()),
        "brier": brier_score(gold, predictions),
        "ece": calibration_errors(bins)[0],
        "mce": calibration_errors(bins)[1],
        "reliability": bins,
    }


def row_losses(gold: Sequence[str], predictions: Sequence[Prediction]) -> np.ndarray:
    """Each row's log loss ``-log p(right label)`` in nats, ``(N,)``; finite also where the label was no candidate."""
    import numpy as np

    right = np.array([p.probabilities.get(label, 0.0) for p, label in zip(predictions, gold, strict=True)])
    losses: np.ndarray = -np.log(np.clip(right, _SMALLEST, 1.0))
    return losses


def brier_score(gold: Sequence[str], predictions: Sequence[Prediction]) -> float:
    """Multi-class Brier score, 0 (perfect) to 2: the mean over rows of sum over labels of (p - y)^2.

    y is 1 for the right label and 0 for the others (Brier 1950). This is scikit-learn's ``brier_score_loss`` with
    ``scale_by_half=False``; it is written out here because rows may have candidates of their own. A right label that
    was no candidate counts as one with probability 0.
    """
    import numpy as np

    # sum (p - y)^2 = sum p^2 - 2 p_right + 1
    squares = np.array([sum(v * v for v in p.probabilities.values()) for p in predictions])
    right = np.array([p.probabilities.get(label, 0.0) for p, label in zip(predictions, gold, strict=True)])
    return float((squares - 2 * right + 1).mean())


def reliability_bins(confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability diagram: rows by the probability of their predicted label.

    Args:
        confidence: probability of the predicted label, in [0, 1].
        correct: whether the prediction is right.
        bins: number of bins of equal width, ``((i - 1) / bins, i / bins]``.

    Returns:
        For each bin ``low``, ``high``, ``count``, and the means ``confidence`` and ``accuracy`` (None in an empty one).
    """
    import numpy as np

    p, hit = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    which = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for b in range(bins):
        inside = which == b
        some = bool(inside.any())
        found.append(
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "count": int(inside.sum()),
                "confidence": float(p[inside].mean()) if some else None,
                "accuracy": float(hit[inside].mean()) if some else None,
            }
        )
    return found


def calibration_errors(bins: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """ECE and MCE: mean, weighted by rows, and largest gap between confidence and accuracy over the bins.

    Guo et al. 2017, equations 3 and 5, after Naeini et al. 2015. A bin of one row can make an MCE of nearly 1, so
    it says little for small data sets.
    """
    total = sum(b["count"] for b in bins)
    gaps = [(b["count"], abs(b["confidence"] - b["accuracy"])) for b in bins if b["count"]]
    return sum(count * gap for count, gap in gaps) / max(1, total), max((gap for _, gap in gaps), default=0.0)


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """ECE of :func:`calibration_errors` from rows; arguments as for :func:`reliability_bins`."""
    return calibration_errors(reliability_bins(confidence, correct, bins))[0]
