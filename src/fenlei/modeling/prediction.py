"""The answer for one text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        label: the candidate with the highest probability; always one of the candidates.
        probability: its probability.
        probabilities: probability of every candidate; they sum to 1.
        scores: log-probability of every candidate's answer, before temperature.
        abstained: whether the classifier declines to answer.
        truncated: whether the text was shortened to fit.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    scores: dict[str, float]
    abstained: bool
    truncated: bool
