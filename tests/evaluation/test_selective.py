"""Thresholds, risk-coverage curves."""

from __future__ import annotations

import numpy as np
import pytest

from fenlei.evaluation.selective import (
    area_under_risk_coverage,
    choose_threshold,
    exact_interval,
    selective_metrics,
)


def sample(seed, n=300):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, n)
    return confidence, rng.uniform(0, 1, n) < confidence


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("target", [0.7, 0.8, 0.9])
def test_precision_target_is_met_on_dev(seed, target):
    confidence, correct = sample(seed)
    found = choose_threshold(confidence, correct, target_precision=target)
    if not found.met:
        assert found.precision < target
        return
    kept = confidence >= found.value
    assert correct[kept].mean() >= target
    assert kept.sum() == found.answered >= 10
    assert found.precision == pytest.approx(correct[kept].mean())
    # no lower threshold would do: everything below answers too many wrong rows
    for lower in confidence[confidence < found.value]:
        assert correct[confidence >= lower].mean() < target


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.99])
def test_coverage_target_is_met_on_dev(seed, target):
    confidence, correct = sample(seed, n=40)
    found = choose_threshold(confidence, correct, target_coverage=target)
    kept = confidence >= (found.value if found.value is not None else -np.inf)
    assert kept.mean() >= target
    assert kept.mean() < target + 1 / 40
    assert found.coverage == pytest.approx(kept.mean())


def test_by_hand():
    confidence, correct = [0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]
    found = choose_threshold(confidence, correct, target_precision=0.75, least=1)
    assert (found.value, found.answered, found.precision) == (pytest.approx(0.55), 4, 0.75)
    found = choose_threshold(confidence, correct, target_coverage=0.4)
    assert found.value == pytest.approx(0.75)


def test_a_target_that_holds_for_all_rows_needs_no_threshold():
    found = choose_threshold([0.9, 0.2], [True, True], target_precision=0.95, least=1)
    assert found.met
    assert found.value is None
    assert found.coverage == 1


def test_an_accident_of_few_rows_is_no_precision():
    confidence = np.linspace(1, 0.5, 30)
    correct = np.array([True] * 9 + [False] * 21)
    assert not choose_threshold(confidence, correct, target_precision=0.95).met
    assert choose_threshold(confidence, correct, target_precision=0.95, least=9).met, "negative control"


def test_unattainable_says_what_could_be_had():
    confidence, correct = np.linspace(1, 0, 50), np.array([False, True] * 25)
    found = choose_threshold(confidence, correct, target_precision=0.99)
    assert not found.met
    assert found.precision <= 0.6
    assert found.answered >= 10


def test_equal_confidences_go_together():
    found = choose_threshold([0.9] * 10 + [0.5] * 10, [True] * 20, target_coverage=0.6)
    assert found.coverage == 1
    found = choose_threshold([0.9] * 10 + [0.5] * 10, [True] * 20, target_coverage=0.5)
    assert found.coverage == 0.5
    assert found.value == pytest.approx(0.7)


def test_neighbouring_floats():
    low = 0.5
    high = np.nextafter(low, 1)
    found = choose_threshold([high, low], [True, False], target_coverage=0.5)
    assert low < found.value <= high


@pytest.mark.parametrize("targets", [{}, {"target_precision": 0.9, "target_coverage": 0.9}])
def test_one_target(targets):
    with pytest.raises(ValueError, match="either"):
        choose_threshold([0.5], [True], **targets)


def test_interval_agrees_with_scipy():
    from scipy.stats import binomtest

    for right, rows in [(0, 10), (19, 20), (50, 50), (7, 13)]:
        expected = binomtest(right, rows).proportion_ci(0.95, "exact")
        assert exact_interval(right, rows) == pytest.approx((expected.low, expected.high))


def test_area_under_the_curve_by_hand():
    # risks among the surest 1, 2, 3, 4 rows: 0, 0, 1/3, 1/2
    assert area_under_risk_coverage([0.9, 0.8, 0.7, 0.6], [True, True, False, False]) == pytest.approx(5 / 24)
    assert area_under_risk_coverage([0.1, 0.2], [True, True]) == 0


def test_equal_confidences_count_as_in_random_order():
    rng = np.random.default_rng(0)
    correct = np.array([True, False, True, True, False, True])
    assert area_under_risk_coverage([0.5] * 6, correct) == pytest.approx(1 / 3)
    confidence = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.1])
    expected = []
    for _ in range(4000):
        order = np.lexsort((rng.random(6), -confidence))
        wrong = np.cumsum(~correct[order])
        expected.append((wrong / np.arange(1, 7)).mean())
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(np.mean(expected), abs=0.01)


def test_a_confidence_that_knows_nothing_is_worse():
    """Negative control: shuffled confidences lose what the curve shows."""
    confidence, correct = sample(0, 2000)
    shuffled = np.random.default_rng(1).permutation(confidence)
    assert area_under_risk_coverage(confidence, correct) < 0.7 * area_under_risk_coverage(shuffled, correct)
    assert area_under_risk_coverage(shuffled, correct) == pytest.approx(1 - correct.mean(), abs=0.05)


def test_figures():
    confidence, correct = sample(3, 1000)
    found = selective_metrics(confidence, correct, confidence < 0.6)
    assert found["abstain_rate"] == pytest.approx((confidence < 0.6).mean())
    assert found["answered"] == (confidence >= 0.6).sum()
    assert found["answered_accuracy"] == pytest.approx(correct[confidence >= 0.6].mean())
    assert found["selective_accuracy"]["1"] == pytest.approx(correct.mean())
    best = np.argsort(-confidence)[:500]
    assert found["selective_accuracy"]["0.5"] == pytest.approx(correct[best].mean())
    assert len(found["risk_coverage"]) <= 101
    last = found["risk_coverage"][-1]
    assert last["coverage"] == 1
    assert last["risk"] == pytest.approx(1 - correct.mean())
    everything = selective_metrics([0.5], [True], [True])
    assert everything["answered_accuracy"] is None
