"""Fitting on dev rows: what was planted is found, little data says little, targets are met or said not to be."""

from __future__ import annotations

import numpy as np
import pytest

from fenlei.config import RunConfig
from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.calibration import TEMPERATURES, fit_calibration
from fenlei.evaluation.reliability import brier_score, probability_metrics
from fenlei.modeling.calibration import ALWAYS_ABSTAIN, Calibration
from fenlei.modeling.prediction import make_predictions, recalibrate

NAMES = ("体育", "财经", "科技", "娱乐")


def settings(**values):
    return RunConfig.build({"calibration": values}).calibration


def rows(n, temperature=1.0, bias=(0, 0, 0, 0), seed=0, spread=3.0, names=NAMES):
    """Scores s, and labels drawn from softmax(s / temperature + bias): the calibration that is right for them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(-4, spread, (n, len(names)))
    planted = Calibration(temperature, dict(zip(names, map(float, bias), strict=True)), method="bias")
    p = planted.probabilities(scores, names)
    gold = [names[rng.choice(len(names), p=row)] for row in p]
    return gold, make_predictions([names] * n, list(scores), [False] * n, Calibration())


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5, 6.0])
def test_a_planted_temperature_is_found(planted):
    found = fit_calibration(*rows(8000, planted), settings())
    assert found.calibration.temperature == pytest.approx(planted, rel=0.06)
    assert found.calibration.method == "temperature"
    assert not found.calibration.bias
    assert found.unmet is None


def test_a_planted_bias_is_found():
    planted = np.array([1.0, 0.0, -0.5, -0.5])
    found = fit_calibration(*rows(20000, 2.0, planted), settings(method="bias")).calibration
    assert found.method == "bias"
    assert found.temperature == pytest.approx(2.0, rel=0.05)
    assert [found.bias[name] for name in NAMES] == pytest.approx(planted - planted.mean(), abs=0.08)


def test_the_fit_is_the_best_of_its_kind():
    """No temperature on a fine grid gives a lower log loss, but for the pull of the prior."""
    gold, predictions = rows(500, 3.0)
    found = fit_calibration(gold, predictions, settings()).calibration

    def loss(temperature):
        return probability_metrics(gold, recalibrate(predictions, Calibration(temperature)))["log_loss"]

    best = min(loss(t) for t in np.exp(np.linspace(-3, 3, 400)))
    assert loss(found.temperature) == pytest.approx(best, abs=1e-3)
    assert loss(found.temperature) < loss(1.0)


def test_temperature_agrees_with_scikit_learn_on_two_labels():
    """With two labels, 1 / T is the coefficient of a logistic regression on the gap without intercept."""
    from sklearn.linear_model import LogisticRegression

    gold, predictions = rows(3000, 2.2, bias=(0, 0), names=("a", "b"))
    gap = np.array([[p.scores["b"] - p.scores["a"]] for p in predictions])
    fitted = LogisticRegression(C=1e9, fit_intercept=False).fit(gap, [g == "b" for g in gold])
    found = fit_calibration(gold, predictions, settings()).calibration
    assert 1 / found.temperature == pytest.approx(float(fitted.coef_[0, 0]), rel=0.01)


def test_ece_falls_and_accuracy_stays():
    gold, predictions = rows(3000, 3.0)
    calibration = fit_calibration(gold, predictions, settings()).calibration
    fresh_gold, fresh = rows(3000, 3.0, seed=1)
    metrics = evaluate_predictions(fresh_gold, recalibrate(fresh, calibration), NAMES, calibration=calibration)
    before = metrics["uncalibrated"]
    assert metrics["accuracy"] == before["accuracy"]
    assert metrics["ece"] < 0.03 < before["ece"]
    assert metrics["log_loss"] < before["log_loss"]
    assert metrics["brier"] < before["brier"]
    assert metrics["calibration"] == calibration.to_dict()


def all_right(n, gap):
    scores = [np.array([-0.01, -0.01 - gap]) for _ in range(n)]
    return ["a"] * n, make_predictions([("a", "b")] * n, scores, [False] * n, Calibration())


@pytest.mark.parametrize(
    ("n", "gap", "low", "high"), [(20, 8.0, 0.9, 1.0), (100, 5.0, 0.6, 0.72), (100, 0.5, 0.08, 0.5)]
)
def test_rows_that_are_all_right_do_not_drive_the_temperature_to_its_bound(n, gap, low, high):
    found = fit_calibration(*all_right(n, gap), settings()).calibration.temperature
    assert low < found < high


def test_without_the_prior_it_would_go_there(monkeypatch):
    """Negative control."""
    from fenlei.evaluation import calibration

    monkeypatch.setattr(calibration, "_TEMPERATURE_PRIOR", 1e6)
    found = fit_calibration(*all_right(100, 5.0), settings()).calibration.temperature
    assert TEMPERATURES[0] <= found < 0.25


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_rows_change_nothing_and_say_so(n):
    found = fit_calibration(*rows(n, 3.0), settings())
    assert found.calibration == Calibration(signal=settings().signal)
    assert "calibration.min_rows=20" in found.notes[-1]
    assert fit_calibration(*rows(20, 3.0), settings()).calibration != found.calibration, "negative control"


def test_a_bias_needs_rows_of_each_label():
    gold, predictions = rows(200, 2.0)
    few = [name if name != "娱乐" else "体育" for name in gold]
    found = fit_calibration(few, predictions, settings(method="bias"))
    assert found.calibration.method == "temperature"
    assert not found.calibration.bias
    assert any("娱乐 0" in note for note in found.notes)


def test_none():
    found = fit_calibration(*rows(200, 2.0), settings(method="none", threshold=0.4))
    assert found.calibration.is_identity
    assert found.calibration.threshold == 0.4


def test_rows_with_their_own_candidates():
    """A temperature is found although every row has other candidates, in other numbers and orders."""
    rng = np.random.default_rng(5)
    gold, candidates, scores = [], [], []
    for _ in range(6000):
        names = tuple(rng.permutation(NAMES)[: rng.integers(1, 5)].tolist())
        s = rng.normal(-4, 3, len(names))
        p = Calibration(2.5).probabilities(s, names)
        gold.append(names[rng.choice(len(names), p=p)])
        candidates.append(names)
        scores.append(s)
    predictions = make_predictions(candidates, scores, [False] * len(gold), Calibration())
    assert fit_calibration(gold, predictions, settings()).calibration.temperature == pytest.approx(2.5, rel=0.06)
    biased = fit_calibration(gold, predictions, settings(method="bias")).calibration
    assert biased.temperature == pytest.approx(2.5, rel=0.07)
    assert max(map(abs, biased.bias.values())) < 0.15


def test_a_label_that_is_no_candidate_is_left_out_and_counted():
    gold, predictions = rows(300, 2.0)
    with_strangers = fit_calibration([*gold, "军事"], [*predictions, predictions[0]], settings())
    assert with_strangers.calibration == fit_calibration(gold, predictions, settings()).calibration
    assert "1 dev rows are left out" in with_strangers.notes[0]


@pytest.mark.parametrize("signal", ["max_probability", "entropy", "answer_likelihood", "label_likelihood"])
@pytest.mark.parametrize("target", [{"target_precision": 0.7}, {"target_coverage": 0.8}])
def test_the_threshold_meets_its_target_on_dev(signal, target):
    gold, predictions = rows(400, 2.0)
    found = fit_calibration(gold, predictions, settings(signal=signal, **target))
    if found.unmet:
        assert signal in ("answer_likelihood", "label_likelihood"), "these scores know nothing of the labels there"
        return
    said = recalibrate(predictions, found.calibration)
    answered = [(p, g) for p, g in zip(said, gold, strict=True) if not p.abstained]
    if "target_precision" in target:
        assert np.mean([p.label == g for p, g in answered]) >= 0.7
    assert len(answered) / 400 == pytest.approx(found.calibration.fit["abstain"]["coverage"])
    assert len(answered) / 400 >= target.get("target_coverage", 0)


def test_a_target_that_cannot_be_met_abstains_always_and_says_so():
    gold, predictions = rows(200, 20.0)
    found = fit_calibration(gold, predictions, settings(target_precision=0.999))
    assert "target_precision=0.999 cannot be met" in found.unmet
    assert "EVERY row" in found.notes[-1]
    assert found.calibration.threshold == ALWAYS_ABSTAIN
    assert all(p.abstained for p in recalibrate(predictions, found.calibration))
    few = fit_calibration(*rows(5), settings(target_coverage=0.9))
    assert few.unmet
    assert few.calibration.threshold == ALWAYS_ABSTAIN


def test_brier_and_log_loss_agree_with_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss

    gold, predictions = rows(500)
    order = sorted(NAMES)
    table = [[p.probabilities[name] for name in order] for p in predictions]
    found = probability_metrics(gold, predictions)
    assert found["log_loss"] == pytest.approx(log_loss(gold, table, labels=order))
    assert found["brier"] == pytest.approx(brier_score_loss(gold, table, labels=order, scale_by_half=False))


def test_brier_by_hand():
    def one(p, gold):
        scores = [np.log(np.array(p))]
        return brier_score([gold], make_predictions([NAMES[: len(p)]], scores, [False], Calibration()))

    assert one([0.7, 0.2, 0.1], "体育") == pytest.approx(0.09 + 0.04 + 0.01)
    assert one([0.7, 0.3], "娱乐") == pytest.approx(0.49 + 0.09 + 1), "the right label was no candidate"
    assert one([1.0], "体育") == pytest.approx(0)
    assert one([1 - 1e-300, 1e-300], "财经") == pytest.approx(2)
