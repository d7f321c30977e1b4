from __future__ import annotations

import json
import random

import pytest

from fenlei.config import DataConfig
from fenlei.data import Example, LabelSet, stratified_split
from fenlei.data import labels as labels_module
from fenlei.errors import DataError


def make(*labels, candidates=None):
    return [Example("t", label, candidates, source=f"f:{i}") for i, label in enumerate(labels, start=1)]


def test_order_of_first_appearance_over_labels_and_candidates():
    rows = [*make("b"), *make("c", candidates=("a", "c")), *make("b", "d")]
    assert LabelSet.from_examples(rows, DataConfig()).names == ("b", "a", "c", "d")


def test_order_from_the_settings():
    config = DataConfig(labels=("z", "b", "a"), descriptions={"a": "first"}, aliases={"A": "a"})
    labels = LabelSet.from_examples(make("a", "A", "b"), config)
    assert labels.names == ("z", "b", "a")
    assert labels.descriptions == {"a": "first"}
    with pytest.raises(DataError, match=r"f:3: unknown label 'bb'; did you mean 'b'\? .*data\.labels"):
        LabelSet.from_examples(make("a", "b", "bb"), config)


def test_encode_decode():
    labels = LabelSet(["体育", "财经"], aliases={"sport": "体育"})
    assert [labels.encode(x) for x in ("体育", "财经", "sport")] == [0, 1, 0]
    assert [labels.decode(i) for i in (0, 1)] == ["体育", "财经"]
    assert labels.canonical("sport") == "体育"
    assert (len(labels), list(labels), "体育" in labels, "sport" in labels) == (2, ["体育", "财经"], True, False)
    with pytest.raises(DataError, match=r"unknown label '体肓'; did you mean '体育'\?"):
        labels.encode("体肓")
    with pytest.raises(DataError, match=r"'体育 ' differs from '体育' only in white space, width or case"):
        labels.encode("体育 ")
    for index in (-1, 2):
        with pytest.raises(DataError, match="outside 0 to 1"):
            labels.decode(index)


@pytest.mark.parametrize(
    "twin", ["Sports ", "sports", "Ｓｐｏｒｔｓ", "Spo rts", "Sports\u200b", "\u3000Sports", "SPORTS\n"]
)
def test_twins_are_listed_with_count_and_place(twin, monkeypatch):
    rows = [*make("Sports", "体育", "Sports"), *make(twin)]
    with pytest.raises(DataError) as caught:
        LabelSet.from_examples(rows, DataConfig())
    message = str(caught.value)
    assert f"{'Sports'!r} (2 times, first in f:1) and {twin!r} (1 times, first in f:1)" in message
    assert "data.aliases" in message
    with pytest.raises(DataError, match="differ only in white space"):
        LabelSet(["Sports", twin])
    # mended by an alias
    assert LabelSet.from_examples(rows, DataConfig(aliases={twin: "Sports"})).names == ("Sports", "体育")
    # negative control: without the guard they pass as two labels
    monkeypatch.setattr(labels_module, "_check_twins", lambda seen: None)
    assert len(LabelSet.from_examples(rows, DataConfig())) == 3


def test_all_pairs_are_listed():
    with pytest.raises(DataError) as caught:
        LabelSet.from_examples(make("a", "A", "b", "B", "c"), DataConfig())
    assert str(caught.value).count(" and ") == 2


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {}, "at least one label"),
        (["a", "a"], {}, "'a' stands twice"),
        (["a", " "], {}, "not blank"),
        (["a"], {"descriptions": {"aa": "x"}}, "did you mean 'a'"),
        (["a"], {"aliases": {"x": "aa"}}, "did you mean 'a'"),
        (["a", "b"], {"aliases": {"a": "b"}}, "itself a label"),
    ],
)
def test_refused(names, settings, message):
    with pytest.raises(DataError, match=message):
        LabelSet(names, **settings)


def test_json_round_trip():
    labels = LabelSet(["体育", "财经"], descriptions={"体育": "比赛"}, aliases={"sport": "体育", "财经": "财经"})
    again = LabelSet.from_dict(json.loads(json.dumps(labels.to_dict())))
    assert again == labels
    assert hash(again) == hash(labels)
    assert again != LabelSet(["财经", "体育"])
    for broken in (
        {},
        {"names": "ab"},
        {"names": [1]},
        {"names": ["a"], "aliases": {"x": 1}},
        {"names": ["a"], "aliases": []},
    ):
        with pytest.raises(DataError):
            LabelSet.from_dict(broken)


def test_split_properties():
    for seed in range(40):
        generator = random.Random(seed)
        sizes = {f"l{i}": generator.choice([1, 2, 3, 5, 40, 200]) for i in range(generator.randint(1, 8))}
        rows = [Example(f"{label}-{i}", label) for label, n in sizes.items() for i in range(n)]
        generator.shuffle(rows)
        fraction = generator.choice([0.01, 0.1, 0.25, 0.5, 0.95])
        train, dev = stratified_split(rows, fraction, seed)
        assert sorted(e.text for e in train + dev) == sorted(e.text for e in rows)
        assert (train, dev) == stratified_split(rows, fraction, seed)
        order = {e.text: i for i, e in enumerate(rows)}
        for side in (train, dev):
            assert [order[e.text] for e in side] == sorted(order[e.text] for e in side)
        for label, n in sizes.items():
            in_dev = sum(e.label == label for e in dev)
            assert in_dev == (0 if n == 1 else min(max(1, round(fraction * n)), n - 1))


def test_split_depends_on_the_seed():
    rows = make(*["a", "b"] * 100)
    assert stratified_split(rows, 0.2, 1) != stratified_split(rows, 0.2, 2)
    assert stratified_split(rows, 0.0, 1) == (rows, [])
    with pytest.raises(DataError, match="f:2: cannot split rows without a label"):
        stratified_split(make("a", None), 0.5, 1)
    with pytest.raises(DataError, match="dev_fraction"):
        stratified_split(rows, 1.0, 1)


def test_scikit_learn_would_not_do():
    """Negative control: why the split is ours."""
    from sklearn.model_selection import train_test_split

    with pytest.raises(ValueError, match="least populated class"):
        train_test_split(list("aaab"), stratify=list("aaab"), test_size=0.5)
