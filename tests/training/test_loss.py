"""How often rows are seen."""

from __future__ import annotations

from fenlei.training.dataset import oversampled_order


def test_oversampling():
    labels = ["a"] * 100 + ["b"] * 4
    order = oversampled_order(labels, 0.5, seed=0)
    assert sum(labels[i] == "a" for i in order) == 100
    assert sum(labels[i] == "b" for i in order) == 20  # 4 * (100 / 4) ** 0.5
    assert oversampled_order(labels, 0.0, seed=0) == list(range(104))
    assert sum(labels[i] == "b" for i in oversampled_order(labels, 1.0, seed=0)) == 100
    assert order == oversampled_order(labels, 0.5, seed=0)
