"""What a request chooses for itself: the labels to choose among, and below which confidence to abstain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fenlei.errors import DataError
from fenlei.modeling.prediction import Prediction
from fenlei.server.terms import Unset

if TYPE_CHECKING:
    from fenlei.modeling.calibration import Calibration
    from fenlei.server.models import Served


def candidates_of(served: Served, candidates: Sequence[str] | None) -> tuple[str, ...] | None:
    """The labels that a request names, each once; None where it names none.

    Raises:
        DataError: an empty list, or one that is no label.
    """
    if candidates is None:
        return None
    labels = served.classifier.labels
    names = tuple(dict.fromkeys(labels.canonical(name) for name in candidates))
    if not names:
        raise DataError(f"candidates: expected one label or more of: {', '.join(labels.names[:20])}")
    return names


def calibration_for(served: Served, threshold: float | Unset | None) -> Calibration | None:
    """The calibration with the threshold of a request; None: the classifier's own is what is wanted.

    Raises:
        DataError: the classifier's signal cannot have this value.
    """
    if isinstance(threshold, Unset):
        return None
    try:
        return replace(served.classifier.calibration, threshold=threshold, fit={})
    except ValueError as error:
        raise DataError(str(error)) from None


def abstaining(predictions: Sequence[Prediction], calibration: Calibration) -> list[Prediction]:
    """The same predictions, with a calibration's word on which of them to abstain from."""
    import numpy as np

    declined = calibration.abstains(np.array([p.confidence for p in predictions])).tolist()
    return [replace(p, abstained=no) for p, no in zip(predictions, declined, strict=True)]
