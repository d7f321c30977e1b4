"""Scores to probabilities, confidence and abstention; what may stand in calibration.json."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fenlei.config import RunConfig
from fenlei.errors import ConfigError
from fenlei.modeling.calibration import ALWAYS_ABSTAIN, SIGNALS, Calibration
from fenlei.modeling.prediction import make_predictions, recalibrate

NAMES = ("a", "b", "c")


def test_closed_form():
    scores = np.log([[0.5, 0.25, 0.05], [0.1, 0.1, 0.2]])
    assert Calibration().probabilities(scores, NAMES) == pytest.approx(
        np.array([[0.625, 0.3125, 0.0625], [0.25, 0.25, 0.5]])
    )
    # temperature 0.5 squares the odds
    assert Calibration(0.5).probabilities(np.log([0.5, 0.25]), "ab") == pytest.approx([0.8, 0.2])
    # a bias of log 3 triples the odds, after the temperature
    found = Calibration(0.5, {"b": math.log(3)}, method="bias").probabilities(np.log([0.5, 0.25]), "ab")
    assert found == pytest.approx([4 / 7, 3 / 7])


def test_bias_belongs_to_the_label_not_to_the_place():
    calibration = Calibration(2.0, {"a": 0.5, "b": -0.5}, method="bias")
    one = calibration.probabilities(np.array([-1.0, -2.0, -3.0]), NAMES)
    other = calibration.probabilities(np.array([-3.0, -1.0, -2.0]), ("c", "a", "b"))
    assert one == pytest.approx(other[[1, 2, 0]])
    assert Calibration(1.0, {"a": 9.0}).probabilities(np.array([0.0, 0.0]), ("new", "b")) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("temperature", [1e-300, 0.05, 3.0, 1e300])
def test_nothing_overflows(temperature):
    scores = np.array([[-1000.0, -1001.0, -3000.0], [0.0, -1e-300, -1e300]])
    calibration = Calibration(temperature)
    p = calibration.probabilities(scores, NAMES)
    assert np.isfinite(p).all()
    assert p.sum(axis=1) == pytest.approx(1)
    for signal in SIGNALS:
        assert np.isfinite(calibration.confidence(scores, p, signal)).all()


def test_temperature_never_changes_the_label():
    rng = np.random.default_rng(0)
    scores = rng.normal(-5, 3, (2000, 3))
    scores[:100, 1] = np.nextafter(scores[:100, 0], 0)  # nearly equal: rounding must not turn them round
    plain = scores.argmax(axis=1)
    for temperature in (1e-6, 0.05, 0.7, 19.0, 1e12):
        assert (Calibration(temperature).best(scores, NAMES) == plain).all()


def test_a_bias_changes_labels():
    """Negative control of the test above."""
    scores = np.random.default_rng(0).normal(-5, 3, (2000, 3))
    assert (Calibration(1.0, {"a": 1.0}, method="bias").best(scores, NAMES) != scores.argmax(axis=1)).any()


def test_signals_by_hand():
    scores = np.log(np.array([[0.3, 0.3], [0.72, 0.08]]))
    calibration = Calibration(signal="entropy")
    p = calibration.probabilities(scores, "ab")
    entropy = (0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert calibration.confidence(scores, p) == pytest.approx([-1.0, entropy])
    assert calibration.confidence(scores, p, "max_probability") == pytest.approx([0.5, 0.9])
    assert calibration.confidence(scores, p, "answer_likelihood") == pytest.approx(np.log([0.6, 0.8]))
    assert calibration.confidence(scores, p, "label_likelihood") == pytest.approx([0.3, 0.72])


@pytest.mark.parametrize("signal", ["answer_likelihood", "label_likelihood"])
def test_likelihoods_do_not_look_at_the_calibration(signal):
    scores = np.random.default_rng(1).normal(-5, 2, (50, 3))
    one, other = Calibration(), Calibration(7.0, {"a": 2.0}, method="bias")
    found = [c.confidence(scores, c.probabilities(scores, NAMES), signal) for c in (one, other)]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("count", [2, 9, 1000])
def test_entropy_compares_rows_with_different_numbers_of_candidates(count):
    calibration = Calibration(signal="entropy")
    alike = np.zeros(count)
    assert calibration.confidence(alike, calibration.probabilities(alike, ["x"] * count)) == pytest.approx(-1)
    certain = np.array([0.0] + [-800.0] * (count - 1))
    assert calibration.confidence(certain, calibration.probabilities(certain, ["x"] * count)) == pytest.approx(0)


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_candidate(signal):
    calibration = Calibration(3.0, signal=signal)
    p = calibration.probabilities(np.array([[-4.0]]), ["a"])
    assert p.tolist() == [[1.0]]
    assert np.isfinite(calibration.confidence(np.array([[-4.0]]), p)).all()


def test_abstains_below_the_threshold_only():
    calibration = Calibration(threshold=0.8)
    assert calibration.abstains(np.array([0.79, 0.8, 0.81])).tolist() == [True, False, False]
    assert not Calibration().abstains(np.array([0.0])).any()
    for signal in SIGNALS:
        highest = np.array([1.0 if signal == "max_probability" else 0.0])
        assert Calibration(signal=signal, threshold=ALWAYS_ABSTAIN).abstains(highest).all()


def test_rows_with_their_own_candidates():
    """Computed together or alone, in any order: the same."""
    rng = np.random.default_rng(2)
    candidates = [NAMES[: 1 + i % 3] if i % 2 else NAMES[::-1] for i in range(40)]
    scores = [rng.normal(-3, 2, len(c)) for c in candidates]
    calibration = Calibration(1.7, {"a": 0.3, "c": -0.3}, "entropy", -0.5, "bias")
    together = make_predictions(candidates, scores, [i % 5 == 0 for i in range(40)], calibration)
    for i, found in enumerate(together):
        alone = make_predictions([candidates[i]], [scores[i]], [i % 5 == 0], calibration)[0]
        assert found.probabilities == pytest.approx(alone.probabilities)
        assert (found.label, found.abstained, found.truncated) == (alone.label, alone.abstained, alone.truncated)
        assert tuple(found.probabilities) == candidates[i]
        assert found.probability == max(found.probabilities.values())
        assert found.abstained == (found.confidence < -0.5)
    assert any(p.abstained for p in together)
    assert not all(p.abstained for p in together)
    assert make_predictions([], [], [], calibration) == []


def test_recalibrate_needs_no_model():
    scores = [np.array([-1.0, -2.0]), np.array([-0.1, -9.0])]
    plain = make_predictions([("a", "b")] * 2, scores, [True, False], Calibration())
    calibration = Calibration(2.0, threshold=0.7)
    assert recalibrate(plain, calibration) == make_predictions([("a", "b")] * 2, scores, [True, False], calibration)
    assert recalibrate(recalibrate(plain, calibration), Calibration()) == plain


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(),
        Calibration(1.37, method="temperature", fit={"rows": 138}),
        Calibration(0.9, {"体育": 0.25, "财经": -0.25}, "entropy", -0.125, "bias"),
        Calibration(signal="answer_likelihood", threshold=-3.5),
    ],
)
def test_json_round_trip(calibration):
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    back = Calibration.from_dict(json.loads(text))
    assert back == calibration
    assert back.fit == calibration.fit
    assert hash(back) == hash(calibration)


def test_what_earlier_releases_wrote():
    assert Calibration.from_dict({"method": "none", "temperature": 1.0}) == Calibration()
    assert Calibration.from_dict({"temperature": 2.5}).temperature == 2.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "expected 'temperature'"),
        ([], "expected 'temperature'"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": -1.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"temperature": float("inf")}, "above 0"),
        ({"temperature": "1"}, "above 0"),
        ({"temperature": True}, "above 0"),
        ({"temperature": 1, "bias": [1]}, "label -> number"),
        ({"temperature": 1, "bias": {"a": None}}, "label 'a'"),
        ({"temperature": 1, "bias": {"a": float("nan")}}, "label 'a'"),
        ({"temperature": 1, "signal": "vibes"}, "max_probability"),
        ({"temperature": 1, "method": "magic"}, "temperature, bias"),
        ({"temperature": 1, "threshold": 80}, "0 to 1"),
        ({"temperature": 1, "threshold": "0.8"}, "0 to 1"),
        ({"temperature": 1, "threshold": 0.5, "signal": "entropy"}, "-1 to 0"),
        ({"temperature": 1, "threshold": 0.5, "signal": "answer_likelihood"}, "at most 0"),
        ({"temperature": 1, "scale": 2}, "unknown key 'scale'"),
        ({"temperature": 1, "fit": 3}, "fit: expected an object"),
        ({"temperature": 1, "signal": ["entropy"]}, "max_probability"),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Calibration.from_dict(values)


FITTED = Calibration(1.5, signal="max_probability", threshold=0.6, method="temperature")


def settings(*overrides):
    return RunConfig.build({}, overrides=overrides).calibration


def test_settings_at_load():
    assert FITTED.with_settings(settings()) is FITTED
    assert FITTED.with_settings(settings("calibration.threshold=0.8")).threshold == 0.8
    assert FITTED.with_settings(settings("calibration.threshold=null")).threshold is None
    both = FITTED.with_settings(settings("calibration.signal=entropy", "calibration.threshold=-0.2"))
    assert (both.signal, both.threshold, both.temperature) == ("entropy", -0.2, 1.5)
    plain = FITTED.with_settings(settings("calibration.method=none", "calibration.threshold=null"))
    assert plain.is_identity


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["calibration.target_precision=0.9"], "fenlei calibrate"),
        (["calibration.target_coverage=0.9"], "fenlei calibrate"),
        (["calibration.method=bias"], "--method bias"),
        (["calibration.method=none"], "give calibration.threshold"),
        (["calibration.signal=entropy"], "give calibration.threshold"),
        (["calibration.threshold=1.5"], r"calibration\.threshold: expected 0 to 1"),
    ],
)
def test_settings_that_would_change_the_meaning(overrides, words):
    with pytest.raises(ConfigError, match=words):
        FITTED.with_settings(settings(*overrides))


def test_a_threshold_does_not_outlive_its_label_set():
    def more_labels(threshold, *overrides):
        Calibration(threshold=threshold).require_for_more_labels(RunConfig.build({}, overrides=overrides).calibration)

    with pytest.raises(ConfigError, match=r"threshold 0\.8 .* give calibration\.threshold as well"):
        more_labels(0.8)
    for other in ("calibration.method=none", "calibration.threshold=0.7", "calibration.threshold=null"):
        with pytest.raises(ConfigError):  # not the one in use
            more_labels(0.8, other)
    # negative controls: it was given, or means the same with any labels
    more_labels(0.8, "calibration.threshold=0.8")
    more_labels(None)
    more_labels(ALWAYS_ABSTAIN)


def test_targets_exclude_each_other():
    with pytest.raises(ConfigError, match="target_precision and target_coverage exclude each other"):
        settings("calibration.target_precision=0.9", "calibration.target_coverage=0.9")
