"""Weights in the processor's own layout: the same products to the bit, or the plain way."""

from __future__ import annotations

import gc

import pytest
import torch

from fenlei.modeling import prepacked
from fenlei.modeling.prepacked import linear, prepack

if not prepacked._possible():
    pytest.skip("this processor has no such layout", allow_module_level=True)


class Model(torch.nn.Module):
    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.first, self.second = (
            torch.nn.Linear(96, 200, dtype=dtype),
            torch.nn.Linear(200, 96, bias=False, dtype=dtype),
        )
        self.head = torch.nn.Linear(96, 500, bias=False, dtype=dtype)
        self.requires_grad_(False)

    def get_output_embeddings(self):
        return self.head


@pytest.fixture
def used(monkeypatch):
    """How many products took the layout."""
    calls = []

    class Ops:
        def __getattr__(self, name):
            return getattr(ops, name)

        def _linear_pointwise(self, *args):
            calls.append(args)
            return ops._linear_pointwise(*args)

    ops = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Ops())
    return calls


def products(model, x):
    with torch.inference_mode():
        return linear(x, model.first.weight, model.first.bias), linear(
            x @ model.first.weight.t(), model.second.weight, None
        )


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_same_to_the_bit(rows, used):
    model, x = Model(), torch.randn(rows, 96).bfloat16()
    plain = products(model, x)
    assert not used
    assert prepack(model) == 2, "all but the head"
    assert all(torch.equal(a, b) for a, b in zip(products(model, x), plain, strict=True))
    assert len(used) == 2


def test_changed_weights_are_seen(used):
    model, x = Model(), torch.randn(3, 96).bfloat16()
    prepack(model)
    before = products(model, x)[0]
    used.clear()
    model.first.weight.mul_(2)  # in place
    model.second.weight.data = -model.second.weight.data  # another tensor
    found = products(model, x)
    assert not used
    assert torch.equal(found[0], torch.nn.functional.linear(x, model.first.weight, model.first.bias))
    assert not torch.equal(found[0], before)
    prepack(model)
    assert all(torch.equal(a, b) for a, b in zip(products(model, x), found, strict=True))
    assert len(used) == 2


def test_with_gradients_the_plain_way(used):
    model, x = Model(), torch.randn(3, 96).bfloat16().requires_grad_()
    prepack(model)
    linear(x, model.first.weight, model.first.bias).sum().backward()
    assert x.grad is not None
    assert not used


@pytest.mark.parametrize("change", ["float32", "trained", "memory"])
def test_what_is_left_as_it_is(change, monkeypatch):
    model = Model(torch.float32 if change == "float32" else torch.bfloat16)
    if change == "trained":
        model.requires_grad_(True)
    if change == "memory":
        monkeypatch.setattr(prepacked, "_memory", lambda: 8 * 2 * 96 * 400 - 1)
    assert prepack(model) == 0


def test_the_layout_goes_with_its_weights():
    gc.collect()
    before = len(prepacked._KNOWN)
    model = Model()
    prepack(model)
    assert len(prepacked._KNOWN) == before + 2
    del model
    gc.collect()
    assert len(prepacked._KNOWN) == before


def test_a_classifier_takes_it_and_answers_the_same(tiny_folder, used):
    from fenlei.config import InferenceConfig, ModelConfig
    from fenlei.modeling.loading import load_model
    from fenlei.modeling.scoring import CandidateScorer, ScoreRequest

    found = []
    for on in (False, True):
        model = load_model(tiny_folder, ModelConfig(dtype="bfloat16", device="cpu")).requires_grad_(False)
        scorer = CandidateScorer(model, 0, InferenceConfig(prepacked=on))
        request = ScoreRequest(list(range(5, 60)), ((10, 11, 2), (10, 12, 2), (20, 2)), 30)
        found.append([s.tolist() for s in scorer.score([request] * 3)])
        assert bool(used) is on
    assert found[0] == found[1]
    model.requires_grad_(True)
    used.clear()
    CandidateScorer(model, 0).score([request])
    assert not used, "a model in training keeps its memory to itself"
