from __future__ import annotations

import pytest

from fenlei.errors import DataError
from fenlei.evaluation import baselines
from fenlei.evaluation.baselines import MajorityBaseline, TfidfBaseline, TfidfSetting, best_tfidf, settings_to_try
from tests.conftest import SENTENCES

NAMES = tuple(SENTENCES)
TEXTS = [text for texts in SENTENCES.values() for text in texts]
LABELS = [label for label, texts in SENTENCES.items() for _ in texts]


def test_majority_is_the_most_frequent_candidate():
    model = MajorityBaseline(["a", "a", "a", "b", "b", "c"])
    said = model.predict(["x", "y"], [("a", "b", "c", "d"), ("c", "b")])
    assert [p.label for p in said] == ["a", "b"]
    assert said[0].probabilities == pytest.approx({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})


def test_tfidf_learns_chinese_and_answers_with_a_candidate():
    model = TfidfBaseline(TfidfSetting(c=1.0, min_df=1)).fit(TEXTS, LABELS)
    said = model.predict([text + "。" for text in TEXTS], [NAMES] * len(TEXTS))
    assert [p.label for p in said] == LABELS
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in said)
    others = [tuple(n for n in NAMES if n != label) for label in LABELS]
    assert all(p.label in names for p, names in zip(model.predict(TEXTS, others), others, strict=True))


def test_a_candidate_without_training_rows_never_wins():
    model = TfidfBaseline().fit(TEXTS, LABELS)
    assert model.predict(["国足"], [("新类", "体育")])[0].label == "体育"


def test_two_labels():
    model = TfidfBaseline().fit(["好 好 好", "坏 坏 坏"] * 3, ["+", "-"] * 3)
    assert [p.label for p in model.predict(["好 好", "坏 坏"], [("+", "-"), ("-", "+")])] == ["+", "-"]


def test_words_count_where_they_are_set_apart():
    texts = ["the cat sat on the mat", "shares fell on the stock market"] * 4
    model = TfidfBaseline().fit(texts, ["pets", "money"] * 4)
    names = [name for name, _ in model._model.steps[0][1].transformer_list]
    assert len(names) == 2
    assert [p.label for p in model.predict(["a cat", "the market"], [("pets", "money")] * 2)] == ["pets", "money"]
    assert not baselines._are_spaced(TEXTS)


def test_settings_are_chosen_on_dev():
    model = best_tfidf((TEXTS * 2, LABELS * 2), (TEXTS, LABELS), [NAMES] * len(TEXTS))
    assert model.setting in settings_to_try(TEXTS)
    assert best_tfidf((TEXTS, LABELS), ([], []), []).setting == baselines.DEFAULT_SETTING


def test_very_long_data_is_sampled(monkeypatch):
    monkeypatch.setattr(baselines, "_MOST_CHARACTERS", 200)
    model = TfidfBaseline().fit(TEXTS * 20, LABELS * 20)
    assert 3 <= model.train_rows < 100


def test_same_seed_same_answers():
    first, second = (TfidfBaseline(seed=7).fit(TEXTS, LABELS).predict(TEXTS, [NAMES] * 12) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("texts", "labels"), [(["a", "b"], ["x", "x"]), (["", ""], ["x", "y"])])
def test_what_cannot_be_learned(texts, labels):
    with pytest.raises(DataError, match="TF-IDF"):
        TfidfBaseline().fit(texts, labels)
