"""Answering only where the classifier is sure: risk against coverage, and where to put the threshold.

Coverage is the share of rows that are answered, risk the share of wrong answers among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COVERAGES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
# a threshold chosen for a precision answers at least so many dev rows: a share of fewer is an accident
LEAST_ANSWERED = 10
_POINTS = 101


@dataclass(frozen=True)
class Threshold:
    """A threshold chosen on labelled rows, and what it does there.

    Attributes:
        value: rows of lower confidence are not answered; None: all rows are answered.
        met: whether the target is met.
        answered: number of rows that are answered.
        coverage: share of the rows that are answered.
        precision: share of right answers among them; when the target cannot be met, the best that can be reached with
            ``answered`` rows.
        interval: 95 % interval of the precision (Clopper and Pearson 1934), as if the threshold had been fixed before.
    """

    value: float | None
    met: bool
    answered: int
    coverage: float
    precision: float
    interval: tuple[float, float]


def choose_threshold(
    confidence: Sequence[float],
    correct: Sequence[bool],
    *,
    target_precision: float | None = None,
    target_coverage: float | None = None,
    least: int = LEAST_ANSWERED,
) -> Threshold:
    """The threshold that answers as many rows as the target allows.

    For a precision it is the smallest threshold above which the share of right answers reaches the target, with at
    least ``least`` rows above it. For a coverage it is the largest threshold above which the target's share of the
    rows lies. Rows of equal confidence are answered together or not at all. The threshold lies half way between two
    rows, so that rounding (batches, other machines) does not move a row across it.

    Args:
        confidence: confidence of each row.
        correct: whether the row's label is right.
        target_precision: share of right answers to reach.
        target_coverage: share of rows to answer; one of the two.
        least: fewest answered rows, for a precision.

    Raises:
        ValueError: no rows, or not one target.
    """
    if not len(confidence) or (target_precision is None) == (target_coverage is None):
        raise ValueError("expected one or more rows, and either a precision or a coverage")
    levels, answered, right = _levels(confidence, correct)
    precision = right / answered
    if target_coverage is not None:
        # without the small step back, 0.9 of 10 rows would be 10 of them
        place = int(np.searchsorted(answered, math.ceil(target_coverage * len(confidence) - 1e-9)))
        return _threshold(levels, answered, right, place, met=True)
    usable = answered >= min(least, len(confidence))
    # right >= target * answered, with room for the rounding of the product
    good = np.flatnonzero(usable & (right >= target_precision * answered - 1e-9))
    if len(good):
        return _threshold(levels, answered, right, int(good[-1]), met=True)
    best = int(np.flatnonzero(usable)[precision[usable].argmax()])
    return _threshold(levels, answered, right, best, met=False)


def _levels(confidence: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences, highest first; how many rows are at or above each, and how many of those are right."""
    sure, hit = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    order = np.argsort(-sure, kind="stable")
    sure, hit = sure[order], hit[order]
    ends: np.ndarray = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)
    return sure[ends], ends + 1, np.cumsum(hit)[ends]


def _threshold(levels: np.ndarray, answered: np.ndarray, right: np.ndarray, place: int, *, met: bool) -> Threshold:
    value = None
    if place + 1 < len(levels):
        value = float((levels[place] + levels[place + 1]) / 2)
        if not levels[place + 1] < value <= levels[place]:  # neighbouring floats
            value = float(levels[place])
    n, k = int(answered[place]), round(float(right[place]))
    return Threshold(value, met, n, n / int(answered[-1]), k / n, exact_interval(k, n))


def exact_interval(right: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share (Clopper and Pearson 1934), e.g. 19 right of 20: 0.75 to 1.00.

    Args:
        right: number of successes.
        rows: number of trials.
        level: coverage of the interval.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(right, rows - right + 1, tail)) if right else 0.0
    high = float(betaincinv(right + 1, rows - right, 1 - tail)) if right < rows else 1.0
    return low, high


def selective_metrics(
    confidence: Sequence[float], correct: Sequence[bool], abstained: Sequence[bool]
) -> dict[str, Any]:
    """What abstaining does, by the classifier's own threshold and by any other.

    Args:
        confidence: confidence of each row, one or more rows.
        correct: whether the row's label is right.
        abstained: whether the classifier declined to answer the row.

    Returns:
        ``abstain_rate``; ``answered`` (rows) and ``answered_accuracy`` (None where no row is answered);
        ``selective_accuracy``: coverage -> accuracy of that share of the rows, the surest first;
        ``risk_coverage``: at most 101 points ``coverage``, ``risk``, ``threshold`` of the curve, one for rows of equal
        confidence; ``aurc``: see :func:`area_under_risk_coverage`.
    """
    hit, declined = np.asarray(correct, dtype=float), np.asarray(abstained, dtype=bool)
    levels, answered, right = _levels(confidence, correct)
    risks = _expected_risks(confidence, correct)
    total = len(hit)
    kept = np.unique(np.linspace(0, len(levels) - 1, min(_POINTS, len(levels))).round().astype(int))
    return {
        "abstain_rate": float(declined.mean()),
        "answered": int((~declined).sum()),
        "answered_accuracy": float(hit[~declined].mean()) if not declined.all() else None,
        "selective_accuracy": {f"{c:g}": float(1 - risks[max(1, math.ceil(c * total - 1e-9)) - 1]) for c in COVERAGES},
        "risk_coverage": [
            {
                "coverage": float(answered[i] / total),
                "risk": float(1 - right[i] / answered[i]),
                "threshold": float(levels[i]),
            }
            for i in kept
        ],
        "aurc": float(risks.mean()),
    }


def area_under_risk_coverage(confidence: Sequence[float], correct: Sequence[bool]) -> float:
    """AURC: the mean over k = 1 .. n of the risk among the k surest rows (Geifman et al. 2019, equation 1).

    0 is perfect; a confidence that knows nothing gives about the error rate. Rows of equal confidence count as if in
    random order, so that the order of the file plays no part.
    """
    return float(_expected_risks(confidence, correct).mean())


def _expected_risks(confidence: Sequence[float], correct: Sequence[bool]) -> np.ndarray:
    """Risk among the k surest rows for k = 1 .. n, ``(n,)``; in expectation within rows of equal confidence."""
    _, answered, right = _levels(confidence, correct)
    k = np.arange(1, int(answered[-1]) + 1)
    return np.clip(1 - np.interp(k, np.append(0, answered), np.append(0.0, right)) / k, 0.0, 1.0)
