"""Intervals and paired tests against closed forms, scikit-learn, and resampling row by row."""

from __future__ import annotations

import warnings
from math import comb

import numpy as np
import pytest
from sklearn import metrics as sk

from fenlei.evaluation.significance import (
    bootstrap_intervals,
    bootstrap_p,
    compare,
    confusion_counts,
    figures_of_counts,
    mcnemar_exact,
    mean_interval,
    resample_counts,
    wilson_interval,
)


def random_labels(rows, classes=5, accuracy=0.7, seed=0):
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, classes, rows)
    said = np.where(generator.random(rows) < accuracy, gold, generator.integers(0, classes, rows))
    return gold, said


def test_wilson_of_a_known_case():
    """Newcombe 1998, table I: 81 of 263."""
    low, high = wilson_interval(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (1, 1)])
def test_wilson_stays_within_0_and_1(right, rows):
    low, high = wilson_interval(right, rows)
    assert 0 <= low <= right / rows <= high + 1e-12
    assert high <= 1


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (3, 9), (9, 3), (7, 7)])
def test_mcnemar_is_the_binomial_sum(b, c):
    n = b + c
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n) if n else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected)


def test_figures_are_those_of_scikit_learn():
    gold, said = random_labels(400)
    said[said == 4] = 3  # a class that is never named
    cells, counts = confusion_counts(gold, said, classes=5)
    found = figures_of_counts(cells[:, 0], cells[:, 1], counts[None], 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sk.accuracy_score(gold, said),
            "macro_f1": sk.f1_score(gold, said, average="macro", zero_division=0.0),
            "weighted_f1": sk.f1_score(gold, said, average="weighted", zero_division=0.0),
            "balanced_accuracy": sk.balanced_accuracy_score(gold, said),
            "mcc": sk.matthews_corrcoef(gold, said),
        }
    assert {name: values[0] for name, values in found.items()} == pytest.approx(expected)


def test_samples_keep_the_class_sizes():
    gold, said = random_labels(300)
    cells, counts = confusion_counts(gold, said, classes=5)
    drawn = resample_counts(cells, counts, 50, seed=1)
    for label in range(5):
        assert (drawn[:, cells[:, 0] == label].sum(axis=1) == (gold == label).sum()).all()


def test_counts_and_rows_resampled_agree():
    """Drawing counts is drawing rows: the same interval, but for the noise of 2,000 samples."""
    gold, said = random_labels(120, classes=3)
    found = bootstrap_intervals(gold, said, 3, samples=2000)
    generator, scores = np.random.default_rng(3), []
    for _ in range(2000):
        rows = np.concatenate([generator.choice(np.flatnonzero(gold == k), (gold == k).sum()) for k in range(3)])
        scores.append(sk.f1_score(gold[rows], said[rows], average="macro"))
    assert found["macro_f1"] == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])), abs=0.012)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        gold, said = random_labels(200, classes=2, accuracy=0.6, seed=seed)  # 0.6 + 0.4 / 2 is right
        low, high = bootstrap_intervals(gold, said, 2, samples=300, seed=seed)["accuracy"]
        inside += low <= 0.8 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_seed():
    gold, said = random_labels(100)
    assert bootstrap_intervals(gold, said, 5, seed=1) == bootstrap_intervals(gold, said, 5, seed=1)
    assert bootstrap_intervals(gold, said, 5, seed=1) != bootstrap_intervals(gold, said, 5, seed=2)


def test_mean_interval_is_near_the_normal_one():
    values = np.random.default_rng(0).exponential(size=500)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 500**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)
    many = np.random.default_rng(0).exponential(size=30_000)
    assert mean_interval(many)[1] - many.mean() == pytest.approx(1.96 * many.std() / 30_000**0.5, rel=1e-3)


def test_compare_tells_a_better_classifier_from_an_equal_one():
    gold, first = random_labels(400, accuracy=0.5)
    _, second = random_labels(400, accuracy=0.9)
    _, third = gold, np.random.default_rng(9).permutation(400) % 5
    gold, first, second, third = ([f"c{x}" for x in column] for column in (gold, first, second, third))
    better = compare(gold, first, second)
    assert better["accuracy_interval"][0] > 0
    assert better["macro_f1_interval"][0] > 0
    assert better["accuracy_p"] < 1e-6
    assert better["macro_f1_p"] == pytest.approx(2 / 1001)
    expected = sk.accuracy_score(gold, second) - sk.accuracy_score(gold, first)
    assert better["accuracy_difference"] == pytest.approx(expected)
    expected = sk.f1_score(gold, second, average="macro") - sk.f1_score(gold, first, average="macro")
    assert better["macro_f1_difference"] == pytest.approx(expected)
    same = compare(gold, first, first)
    assert same["accuracy_interval"] is None
    assert (same["accuracy_p"], same["macro_f1_p"]) == (1, None)
    worse = compare(gold, second, third)
    assert worse["accuracy_interval"][1] < 0


def test_paired_is_narrower_than_apart():
    """Two classifiers that err on the same rows are told apart by the few rows where they differ."""
    gold, first = random_labels(500, accuracy=0.6)
    second = first.copy()
    wrong = np.flatnonzero(first != gold)[:15]
    second[wrong] = gold[wrong]
    found = compare([str(x) for x in gold], [str(x) for x in first], [str(x) for x in second])
    low, high = found["accuracy_interval"]
    assert low > 0
    assert (found["only_first_right"], found["only_second_right"]) == (0, 15)
    # each on samples of its own, the differences of the two would hide it
    apart = []
    for said, seed in ((first, 1), (second, 2)):
        cells, counts = confusion_counts(gold, said, classes=5)
        drawn = resample_counts(cells, counts, 1000, seed)
        apart.append(figures_of_counts(cells[:, 0], cells[:, 1], drawn, 5)["accuracy"])
    wide = np.quantile(apart[1] - apart[0], [0.025, 0.975])
    assert wide[0] < 0 < wide[1]
    assert high - low < 0.5 * (wide[1] - wide[0])


def test_no_interval_from_samples_that_are_all_the_same():
    gold = np.arange(30) % 3
    assert set(bootstrap_intervals(gold, gold, 3).values()) == {None}
    constant = bootstrap_intervals(gold, np.zeros(30, dtype=int), 3)
    assert constant["macro_f1"] is None
    assert mean_interval(np.full(20, 0.7)) is None
    assert None not in bootstrap_intervals(*random_labels(60), 5).values()


def test_bootstrap_p():
    assert bootstrap_p(np.array([1.0] * 99)) == pytest.approx(2 / 100)
    assert bootstrap_p(np.array([1.0, -1.0] * 50)) == 1.0
