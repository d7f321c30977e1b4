"""MCC, balanced accuracy, micro-F1, precision-recall curves and intervals in the dict of all figures."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.curves import precision_recall
from fenlei.modeling.prediction import Prediction

LABELS = ["体育", "财经", "科技"]


def made(rows, seed=0, labels=LABELS):
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(len(labels)), rows)
    gold = [labels[generator.choice(len(labels), p=row)] for row in p]
    found = []
    for row in p.tolist():
        best = int(np.argmax(row))
        probabilities = dict(zip(labels, row, strict=True))
        found.append(Prediction(labels[best], row[best], probabilities, {}, False, False, row[best]))
    return gold, found, p


def test_against_scikit_learn():
    gold, found, p = made(300)
    said = [x.label for x in found]
    m = evaluate_predictions(gold, found, LABELS)
    assert m["mcc"] == pytest.approx(sk.matthews_corrcoef(gold, said))
    assert m["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(gold, said))
    assert m["micro_f1"] == pytest.approx(sk.f1_score(gold, said, average="micro"))
    assert m["micro_f1"] == pytest.approx(m["accuracy"])
    assert m["log_loss"] == pytest.approx(sk.log_loss(gold, p[:, [LABELS.index(x) for x in sorted(LABELS)]]))
    for i, label in enumerate(LABELS):
        curve = m["precision_recall"][label]
        truth = [x == label for x in gold]
        assert curve["average_precision"] == pytest.approx(sk.average_precision_score(truth, p[:, i]))
        assert len(curve["recall"]) == len(curve["precision"]) == len(curve["threshold"]) <= 101
        assert curve["recall"] == sorted(curve["recall"])
        assert curve["recall"][-1] == 1.0
        for recall, precision, threshold in zip(*(curve[k] for k in ("recall", "precision", "threshold")), strict=True):
            taken = p[:, i] >= threshold
            hits = sum(t and k for t, k in zip(truth, taken, strict=True))
            assert (recall, precision) == pytest.approx((hits / sum(truth), hits / taken.sum()))
    assert m["average_precision"] == pytest.approx(
        np.mean([c["average_precision"] for c in m["precision_recall"].values()])
    )
    json.dumps(m)


def test_intervals_hold_their_figures():
    gold, found, _ = made(200)
    m = evaluate_predictions(gold, found, LABELS)
    for name in ("accuracy", "macro_f1", "weighted_f1", "mcc", "balanced_accuracy", "log_loss"):
        low, high = m["intervals"][name]
        assert low < m[name] < high
    assert m["intervals"] == evaluate_predictions(gold, found, LABELS)["intervals"], "the seed is fixed"


def test_scores_on_the_way_are_the_same_without_curves():
    gold, found, _ = made(50)
    whole, brief = (evaluate_predictions(gold, found, LABELS, full=full) for full in (True, False))
    assert "intervals" not in brief
    assert "precision_recall" not in brief
    assert {k: whole[k] for k in brief} == brief


def test_rows_with_candidates_of_their_own():
    """A label that was no candidate has probability 0; a right label among none of them costs recall."""
    found = [
        Prediction("a", 0.9, {"a": 0.9, "b": 0.1}, {}, False, False, 0.9),
        Prediction("b", 0.8, {"b": 0.8, "c": 0.2}, {}, False, False, 0.8),
        Prediction("c", 0.6, {"a": 0.4, "c": 0.6}, {}, False, False, 0.6),
    ]
    curves = precision_recall(["a", "b", "b"], found, ["a", "b", "c"])
    assert curves["c"] is None, "no row of it"
    assert curves["a"]["average_precision"] == 1.0
    assert curves["b"]["average_precision"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    m = evaluate_predictions(["a", "b", "b"], found, ["a", "b", "c"])
    assert m["average_precision"] == pytest.approx((1 + 0.5 + 1 / 3) / 2)


def test_one_class_and_one_row():
    one = [Prediction("a", 1.0, {"a": 1.0}, {}, False, False, 1.0)]
    m = evaluate_predictions(["a"], one, ["a", "b"])
    assert m["accuracy"] == m["balanced_accuracy"] == m["macro_f1"] == 1.0
    assert m["mcc"] == 0.0
    assert all(np.isfinite(m["intervals"]["accuracy"]))


def test_a_hundred_thousand_rows_take_seconds():
    gold, found, _ = made(100_000, labels=[f"label {i}" for i in range(10)])
    start = time.process_time()
    evaluate_predictions(gold, found, [f"label {i}" for i in range(10)])
    assert time.process_time() - start < 12
