"""Caches are bounded by what they hold, not by how many entries."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from fenlei.caches import BoundedCache
from fenlei.config import PromptConfig
from fenlei.data import LabelSet
from fenlei.modeling import scoring_parts
from fenlei.modeling.tree import ancestors, build_tree
from fenlei.prompting import PromptEncoder


def test_what_was_used_last_is_kept_as_far_as_it_fits():
    made = []
    cache: BoundedCache[str, str] = BoundedCache(40, lambda key, value: len(value))

    def get(key, size=10):
        return cache.get(key, lambda: made.append(key) or key * size)

    for key in "abcd":
        get(key)
    assert get("a") == "a" * 10
    get("e")  # drives out b, the one not used for longest
    for key in "acde":
        get(key)
    assert made == list("abcde")
    get("b")
    assert (made[-1], len(cache), cache.used_bytes) == ("b", 4, 40)
    get("x", 11)  # more than a quarter
    get("x", 11)
    assert made[-2:] == ["x", "x"]
    assert (len(cache), cache.used_bytes) == (4, 40)
    cache.clear()
    assert (len(cache), cache.used_bytes) == (0, 0)


def answers_of(seed, count=100):
    """Answers that share beginnings, in an order of their own."""
    draw = random.Random(seed)
    answers = [(1000 + i // 10, 2000 + i, 3000 + i % 7, 9) for i in range(count)]
    draw.shuffle(answers)
    return tuple(answers)


def test_a_tree_says_about_how_large_it_is():
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trees = [build_tree(answers_of(seed), complete=True) for seed in range(40)]
    for tree in trees:
        tree.reads, ancestors(tree)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.6 < sum(tree.nbytes for tree in trees) / taken < 1.7


@pytest.mark.parametrize("most", [1 << 20, 1 << 40], ids=["bounded", "negative control"])
def test_rows_with_candidates_in_orders_of_their_own_take_no_more_than_allowed(monkeypatch, tokenizer, most):
    monkeypatch.setattr(scoring_parts._TREES, "most_bytes", most)
    scoring_parts._TREES.clear()
    names = [f"label {i}" for i in range(60)]
    encoder = PromptEncoder(tokenizer, PromptConfig(max_length=2048), LabelSet(names), "row")
    encoder._frames.most_bytes = most
    for seed in range(60):
        scoring_parts.tree_of(answers_of(seed), True)
        random.Random(seed).shuffle(names)
        encoder.encode("x", names)
    for cache in (scoring_parts._TREES, encoder._frames):
        assert 0 < len(cache) <= 61
        assert (cache.used_bytes <= 1 << 20) == (most == 1 << 20)
    scoring_parts._TREES.clear()


def test_the_same_answers_have_the_same_tree():
    scoring_parts._TREES.clear()
    assert scoring_parts.tree_of(answers_of(1), True) is scoring_parts.tree_of(answers_of(1), True)
    assert scoring_parts.tree_of(answers_of(1), True) is not scoring_parts.tree_of(answers_of(2), True)
