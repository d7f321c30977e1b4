"""The answer for one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fenlei.modeling.calibration import Calibration

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        label: the candidate with the highest probability; always one of the candidates, also where it abstains.
        probability: its probability.
        probabilities: probability of every candidate; they sum to 1.
        scores: log-probability of every candidate's answer, before calibration.
        abstained: whether the classifier declines to answer: its confidence is below the threshold.
        truncated: whether the text was shortened to fit.
        confidence: the signal that the threshold is for, see :class:`fenlei.modeling.calibration.Calibration`.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    scores: dict[str, float]
    abstained: bool
    truncated: bool
    confidence: float


def make_predictions(
    candidates: Sequence[tuple[str, ...]],
    scores: Sequence[np.ndarray],
    truncated: Sequence[bool],
    calibration: Calibration,
) -> list[Prediction]:
    """Predictions from scores, in the same order; rows with the same candidates are computed together.

    Args:
        candidates: each row's candidates.
        scores: each row's finite scores, ``(C,)``.
        truncated: whether each row's text was shortened.
        calibration: what makes probabilities of scores.
    """
    import numpy as np

    groups: dict[tuple[str, ...], list[int]] = {}
    for row, names in enumerate(candidates):
        groups.setdefault(names, []).append(row)
    found: dict[int, Prediction] = {}
    for names, rows in groups.items():
        table = np.stack([scores[row] for row in rows])
        p = calibration.probabilities(table, names)
        confidence = calibration.confidence(table, p)
        abstained = calibration.abstains(confidence).tolist()
        best = calibration.best(table, names).tolist()
        for row, s, q, label, sure, declined in zip(
            rows, table.tolist(), p.tolist(), best, confidence.tolist(), abstained, strict=True
        ):
            found[row] = Prediction(
                label=names[label],
                probability=q[label],
                probabilities=dict(zip(names, q, strict=True)),
                scores=dict(zip(names, s, strict=True)),
                abstained=declined,
                truncated=truncated[row],
                confidence=sure,
            )
    return [found[row] for row in range(len(candidates))]


def recalibrate(predictions: Sequence[Prediction], calibration: Calibration) -> list[Prediction]:
    """The same predictions under another calibration: their scores are kept, so no model is needed."""
    import numpy as np

    return make_predictions(
        [tuple(p.scores) for p in predictions],
        [np.array(list(p.scores.values())) for p in predictions],
        [p.truncated for p in predictions],
        calibration,
    )
