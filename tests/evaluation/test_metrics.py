from __future__ import annotations

import math

import pytest

from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.reliability import expected_calibration_error
from fenlei.modeling.prediction import Prediction


def said(label: str, p: float, **others: float) -> Prediction:
    return Prediction(label, p, {label: p, **others}, {}, abstained=False, truncated=label == "a", confidence=p)


def test_figures_by_hand():
    gold = ["a", "a", "b", "b"]
    found = [said("a", 0.8, b=0.2), said("b", 0.6, a=0.4), said("b", 0.9, a=0.1), said("b", 0.7, a=0.3)]
    m = evaluate_predictions(gold, found, ["a", "b", "c"], seconds=2.0)
    assert m["n"] == 4
    assert m["accuracy"] == 0.75
    f1_a, f1_b = 2 * 1 * 0.5 / 1.5, 2 * (2 / 3) * 1 / (5 / 3)
    assert m["macro_f1"] == pytest.approx((f1_a + f1_b) / 2), "a class that never occurs does not count"
    assert m["log_loss"] == pytest.approx(-sum(map(math.log, (0.8, 0.4, 0.9, 0.7))) / 4)
    assert m["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert m["per_class"]["c"]["support"] == 0
    assert m["per_class"]["b"]["recall"] == 1.0
    assert m["texts_per_second"] == 2.0
    assert m["truncated"] == 1


def test_calibration_error():
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert expected_calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert expected_calibration_error([0.0], [False]) == pytest.approx(0)


def test_right_label_that_was_no_candidate_costs_a_finite_log_loss():
    m = evaluate_predictions(["z"], [said("a", 1.0)], ["a", "z"])
    assert math.isfinite(m["log_loss"])
    assert m["accuracy"] == 0


@pytest.mark.parametrize("gold", [[], ["a", "b"]])
def test_lengths(gold):
    with pytest.raises(ValueError, match="labels for"):
        evaluate_predictions(gold, [said("a", 1.0)], ["a"])
