"""Planted label errors are found; clean data has none."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fenlei.errors import ConfigError, DataError
from fenlei.evaluation.noise import out_of_fold, plant_errors, rank_label_errors, ranking_quality
from fenlei.modeling.prediction import Prediction

NAMES = ("体育", "财经", "科技")
WORDS = {"体育": "球队比赛进球冠军联赛教练", "财经": "股市基金银行利率债券投资", "科技": "芯片手机软件机器人网络算法"}


def said(**p):
    best = max(p, key=p.get)
    return Prediction(best, p[best], p, {}, False, False, p[best])


def texts(rows, seed=0):
    generator = random.Random(seed)
    labels = [NAMES[i % 3] for i in range(rows)]
    return ["".join(generator.sample(WORDS[label], 8)) for label in labels], labels


def test_planted_errors_come_first():
    lines, right = texts(300)
    given, planted = plant_errors(right, 0.05, seed=1)
    issues = rank_label_errors(given, out_of_fold(lines, given, [NAMES] * 300))
    assert len(planted) == 15
    assert {issue.row for issue in issues[:15]} == planted
    assert all(issue.suggested == right[issue.row] for issue in issues[:15])
    probable = {issue.row for issue in issues if issue.probable}
    assert probable <= planted
    assert len(probable) >= 14
    assert len(issues) == 300


def test_clean_data_has_none():
    """Negative control."""
    lines, right = texts(300)
    assert not any(i.probable for i in rank_label_errors(right, out_of_fold(lines, right, [NAMES] * 300)))


def test_a_model_that_saw_the_wrong_labels_finds_fewer():
    """Why probabilities must be out-of-sample: fitted on its own rows, TF-IDF believes every label."""
    from fenlei.evaluation.baselines import TfidfBaseline, TfidfSetting

    lines, right = texts(120)
    lines = [f"{line}第{i}号{i * 7919}" for i, line in enumerate(lines)]
    given, planted = plant_errors(right, 0.1, seed=1)
    seen = TfidfBaseline(TfidfSetting(c=100.0, min_df=1)).fit(lines, given).predict(lines, [NAMES] * 120)
    by_seen = [i for i in rank_label_errors(given, seen) if i.probable]
    unseen = [i for i in rank_label_errors(given, out_of_fold(lines, given, [NAMES] * 120)) if i.probable]
    assert len({i.row for i in by_seen} & planted) < len({i.row for i in unseen} & planted)


def test_order_is_self_confidence_and_suggestions_are_the_best_label():
    given = ["a", "a", "b", "b"]
    found = rank_label_errors(given, [said(a=0.9, b=0.1), said(a=0.05, b=0.95), said(a=0.4, b=0.6), said(a=0.2, b=0.8)])
    assert [issue.row for issue in found] == [1, 2, 3, 0]
    assert [issue.score for issue in found] == pytest.approx([0.05, 0.6, 0.8, 0.9])
    assert (found[0].suggested, found[0].given) == ("b", "a")
    assert [issue.probable for issue in found] == [True, False, False, False]


def test_rows_with_candidates_of_their_own():
    found = rank_label_errors(["a", "c", "b"], [said(a=0.9, b=0.1), said(b=0.7, c=0.3), said(a=0.1, b=0.9)])
    assert found[0].row == 1
    assert found[0].suggested == "b"


def test_a_given_label_that_was_no_candidate_is_the_first_suspect():
    found = rank_label_errors(["a", "c", "b"], [said(a=0.9, b=0.1), said(a=0.4, b=0.6), said(a=0.1, b=0.9)])
    assert (found[0].row, found[0].probability) == (1, 0.0)


def test_folds_and_seed():
    lines, right = texts(60)
    first, again, other = (out_of_fold(lines, right, [NAMES] * 60, folds=3, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    with pytest.raises(ConfigError, match="folds"):
        out_of_fold(lines, right, [NAMES] * 60, folds=61)
    with pytest.raises(DataError, match="two labels"):
        out_of_fold(lines[:3], ["a", "a", "b"], [("a", "b")] * 3, folds=3)


def test_ranking_quality_by_hand():
    found = ranking_quality([4, 1, 0, 2, 3], {4, 0})
    assert found["precision@1x"] == 0.5
    assert found["recall@1x"] == 0.5
    assert found["recall@2x"] == 1.0
    assert found["precision@2x"] == 0.5
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_planting():
    right = [NAMES[i % 3] for i in range(3000)]
    given, rows = plant_errors(right, 0.05, seed=4)
    assert len(rows) == 150
    assert {i for i in range(3000) if given[i] != right[i]} == rows
    assert plant_errors(right, 0.05, seed=4) == (given, rows)
    assert plant_errors(right, 0.05, seed=5)[1] != rows
    share = np.mean([given[i] == NAMES[(NAMES.index(right[i]) + 1) % 3] for i in rows])
    assert 0.38 < share < 0.62, "evenly among the other labels"
