"""The comparison before the first step: it must see what a packed row may learn from its neighbours."""

from __future__ import annotations

import pytest
import torch

from fenlei.modeling.packed import can_pack
from fenlei.training.packing_check import PackingCheck
from tests.training.test_engine import assert_same, engine_of, make_model, make_rows, plain, run

HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def test_linear_attention_is_padded(monkeypatch):
    """Its state would run from row to row."""
    from fenlei.training import engine as module

    model, rows = make_model("qwen3_5_text", **HYBRID), make_rows(6)
    expected = plain(model, rows)
    engine = engine_of(model)
    assert not engine.packed
    assert_same(run(engine, rows), expected, 5e-5)
    monkeypatch.setattr(module, "can_pack", lambda model: True)
    said = []
    engine = engine_of(model, say=said.append)
    assert_same(run(engine, rows), expected, 5e-5)
    assert "cannot be packed" in said[0], "the comparison alone sees it too"


def leaking(model, strength: float):
    """Every token's output of the first MLP takes in a little of a token before it, like a recurrent layer."""
    mlp = model.get_decoder().layers[0].mlp
    forward = mlp.forward

    def leaks(x):
        out = forward(x)
        return out + strength * torch.nn.functional.pad(x, (0, 0, 8, -8))

    mlp.forward = leaks


@pytest.mark.parametrize(("strength", "agrees"), [(0.0, True), (0.02, False)])
def test_a_small_leak_between_rows_is_seen_in_bfloat16(strength, agrees, monkeypatch):
    model = make_model(dtype=torch.bfloat16)
    engine = engine_of(model)
    leaking(model, strength)
    few = make_rows(2, shared=20)
    assert engine._agree(few) == agrees
    # negative control: the losses alone stay within the bounds that bfloat16 needs
    monkeypatch.setattr(PackingCheck, "_deaf_to_neighbours", lambda *_: True)
    assert engine._agree(few)


def test_the_common_beginning_is_compared_too(monkeypatch):
    from fenlei.training.beginning import CommonBeginning

    engine, few = engine_of(make_model()), make_rows(2, shared=20)
    assert engine._agree(few)
    begin = CommonBeginning.__init__

    def nothing_found(self, *args):
        begin(self, *args)
        self.past = {layer: (key * 0, value * 0) for layer, (key, value) in self.past.items()}

    monkeypatch.setattr(CommonBeginning, "__init__", nothing_found)
    assert not engine._agree(few)


@pytest.mark.parametrize("fault", [None, "wrong", "raises"])
def test_gradients_are_compared_where_flash_attention_is_used(monkeypatch, fault):
    """A kernel whose forward pass is right."""

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if fault == "raises":
                raise RuntimeError("this head width has no backward kernel")
            return grad * (1.5 if fault == "wrong" else 1.0)

    from fenlei.modeling import packed_attention

    model, rows = make_model(), make_rows()
    expected, said, attend = plain(model, rows), [], packed_attention.attend
    engine = engine_of(model, say=said.append)

    def with_fault(query, *rest):
        return attend(Backward.apply(query) if engine._flash is not None else query, *rest)

    monkeypatch.setattr(packed_attention, "attend", with_fault)
    collate = engine._collate
    engine._flash = flash = lambda *_: None

    def without_segments(*args):
        engine._flash, before = None, engine._flash
        try:
            return collate(*args)
        finally:
            engine._flash = before

    engine._collate = without_segments
    engine._check_packing(rows)
    assert (engine._flash is flash) == (fault is None)
    assert engine.packed
    assert bool(said) == (fault is not None)
    assert_same(run(engine, rows), expected)


def test_attention_elsewhere_repeats_the_key_heads(monkeypatch):
    """CUDA's fast kernels take a mask only without groups of heads."""
    from fenlei.modeling import packed_attention
    from fenlei.modeling.packed import pack

    draw = torch.Generator().manual_seed(0)
    rows = [r.input_ids for r in make_rows(3)]
    ids, layout = pack(rows, 13)
    q, k, v = (torch.randn(heads, len(ids), 16, generator=draw) for heads in (4, 2, 2))
    seen, product = [], torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, value, **how):
        seen.append((query.shape[1], key.shape[1], how.get("enable_gqa", False)))
        return product(query, key, value, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    found = packed_attention._sdpa(q, k, v, layout, 0.25, None)
    assert set(seen) == {(4, 4, False)}
    assert torch.allclose(found, packed_attention.attend(q, k, v, layout, 0.25), atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "can"),
    [
        (["full_attention", "sliding_attention"], True),
        (["full_attention", "chunked_attention"], False),
        (["conv", "full_attention"], False),
    ],
)
def test_layers_that_look_beyond_their_row_are_not_packed(kinds, can):
    model = make_model()
    model.config.get_text_config().layer_types = kinds
    assert can_pack(model) == can
