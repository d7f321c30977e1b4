"""Kernels of a GPU: what is chosen, what they are told, and that everything is put back. The kernels themselves do not
run here; a plain one in their place shows that rows come out right."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fenlei.config import SpeedConfig
from fenlei.errors import MissingDependency, ModelError
from fenlei.modeling import kernels, varlen
from fenlei.modeling.fuse import fuse, unfuse
from fenlei.modeling.packed import PackedState, pack
from tests.training.test_engine import assert_same, engine_of, make_model, make_rows, plain, run

GPU = torch.device("cuda")


def plain_kernel(q, k, v, s, scale, window, aligned_at_end=True):
    """What FlashAttention computes: causal from the end of each segment's keys."""
    parts = []
    pairs = zip(s.query_ends, s.query_ends[1:], s.key_ends, s.key_ends[1:], strict=False)
    for q0, q1, k0, k1 in ((int(a), int(b), int(c), int(d)) for a, b, c, d in pairs):
        more = (k1 - k0) - (q1 - q0) if aligned_at_end else 0
        distance = more + torch.arange(q1 - q0)[:, None] - torch.arange(k1 - k0)[None]
        hidden = (distance < 0) | (distance >= (window or 10**6))
        groups = q.shape[1] // k.shape[1]
        keys, values = (x[k0:k1].repeat_interleave(groups, 1) for x in (k, v))
        scores = torch.einsum("shd,khd->hsk", q[q0:q1], keys) * scale
        parts.append(torch.einsum("hsk,khd->shd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values))
    return torch.cat(parts)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_rows_as_segments_give_the_losses_and_gradients_of_separate_rows(kind, share):
    model, rows = make_model(kind, **({"sliding_window": 8} if kind == "mistral" else {})), make_rows()
    expected = plain(model, rows)
    engine = engine_of(model, share_prefix=share)
    engine._flash = plain_kernel
    assert_same(run(engine, rows), expected)
    assert engine.packed
    assert engine._flash is plain_kernel
    assert engine.state()["flash"] is True


def test_a_kernel_that_aligns_otherwise_is_noticed_and_left_off():
    """Negative control of the alignment: as torch's scaled_dot_product_attention would do it."""
    model, rows, said = make_model(), make_rows(), []
    engine = engine_of(model, say=said.append)
    engine._flash = lambda *args: plain_kernel(*args, aligned_at_end=False)
    assert_same(run(engine, rows), plain(model, rows))
    assert engine.packed
    assert engine._flash is None
    assert "scaled_dot_product_attention is used" in said[0]
    assert engine.state()["flash"] is False


def test_segments():
    _, layout = pack([[1, 2, 3, 4], [1, 2, 5, 6, 7]], 2)
    s = varlen.segments_of(layout, plain_kernel)
    assert s.keys.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert (s.query_ends.tolist(), s.key_ends.tolist()) == ([0, 2, 4, 7], [0, 2, 6, 11])
    assert s.query_ends.dtype == torch.int32
    assert (s.longest_query, s.longest_key) == (3, 5)
    x = torch.randn(7, 1, 2, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(lambda y: varlen._TakeKeys.apply(y, s), x, atol=1e-4)  # summed in float32


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))


def test_which_attention_is_taken(ampere, monkeypatch):
    kernel, words = varlen.flash_kernel("auto", GPU, torch.bfloat16)
    assert kernel is not None
    assert "FlashAttention of torch" in words
    assert varlen.flash_kernel("sdpa", GPU, torch.bfloat16)[0] is None
    assert varlen.flash_kernel("auto", GPU, torch.float32) == (None, "scaled_dot_product_attention")
    assert varlen.flash_kernel("auto", torch.device("cpu"), torch.bfloat16)[0] is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 5))
    assert varlen.flash_kernel("auto", GPU, torch.bfloat16)[0] is None


def test_flash_that_cannot_be_had_says_why(ampere, monkeypatch):
    for device, dtype, words in (
        (torch.device("cpu"), torch.bfloat16, "needs a CUDA GPU, the model is on cpu"),
        (GPU, torch.float32, "needs model.dtype=bfloat16, it is float32"),
    ):
        with pytest.raises(ModelError, match=words):
            varlen.flash_kernel("flash", device, dtype)
    monkeypatch.setattr(varlen, "_from_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ModelError, match="pip install flash-attn"):
        varlen.flash_kernel("flash", GPU, torch.bfloat16)
    with pytest.raises(ModelError, match="needs a CUDA GPU"):
        engine_of(make_model(), attention="flash")


def test_what_the_kernels_are_told(ampere, monkeypatch):
    told = []
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn",
        lambda q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa: told.append(
            (max_q, max_k, scale, window_size, enable_gqa)
        ),
    )
    _, layout = pack([[1, 2, 3, 4], [1, 2, 5, 6, 7]], 2)
    kernel, _ = varlen.flash_kernel("flash", GPU, torch.bfloat16)
    s = varlen.segments_of(layout, kernel)
    q, k = torch.zeros(7, 4, 8), torch.zeros(11, 2, 8)
    kernel(q, k, k, s, 0.5, None)
    kernel(q, k[:, :1].expand(-1, 4, -1), k, s, 0.5, 8)
    # torch takes (-1, 0) for causal; a window of 8 keys is the query's own and 7 before it
    assert told == [(3, 5, 0.5, (-1, 0), True), (3, 5, 0.5, (7, 0), False)]

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = lambda *args, **how: told.append(how)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(varlen, "_from_torch", lambda: None)
    kernel, words = varlen.flash_kernel("auto", GPU, torch.bfloat16)
    assert "flash-attn" in words
    kernel(q, k, k, s, 0.5, 8)
    assert told[-1] == {"softmax_scale": 0.5, "causal": True, "window_size": (7, 0)}


@pytest.fixture
def fake_liger(monkeypatch):
    """Patches like the package: classes and functions in the source file, forward passes of single modules."""
    from transformers.integrations import liger
    from transformers.models.qwen2 import modeling_qwen2 as source

    told = []

    class Norm(torch.nn.Module):
        pass

    def apply(base, config):
        told.append(config)
        rotate = source.apply_rotary_pos_emb
        source.apply_rotary_pos_emb = lambda *args, **more: rotate(*args, **more)
        source.Qwen2RMSNorm = Norm
        norm = type(base.model.norm).forward
        base.model.norm.__dict__["forward"] = norm.__get__(base.model.norm)

    monkeypatch.setattr(liger, "apply_liger_kernel", apply)
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    monkeypatch.setattr(kernels, "_cannot", lambda kind, device: None)
    return SimpleNamespace(told=told, source=source)


def test_liger_without_its_cross_entropy_and_gone_afterwards(fake_liger):
    model, rows, source = make_model(), make_rows(), fake_liger.source
    expected = plain(model, rows)
    rotate, norm = source.apply_rotary_pos_emb, source.Qwen2RMSNorm
    engine = engine_of(model)
    assert source.apply_rotary_pos_emb is not rotate
    assert source.Qwen2RMSNorm is norm, "models that are loaded later keep their own"
    assert fake_liger.told[0]["cross_entropy"] is fake_liger.told[0]["fused_linear_cross_entropy"] is False
    assert (engine.fused["liger"], engine.fused["norm"]) == (1, 6), "its own norm is not replaced by ours"
    assert_same(run(engine, rows), expected)
    unfuse(model)
    assert source.apply_rotary_pos_emb is rotate
    assert "forward" not in model.get_base_model().model.norm.__dict__
    engine_of(model, kernels="torch")
    engine_of(model, fused_norm=False)
    assert len(fake_liger.told) == 1


def test_liger_that_cannot_be_had_says_why(monkeypatch):
    model = make_model()
    with pytest.raises(ModelError, match=r"needs a CUDA GPU, the model is on cpu: take speed\.kernels=auto"):
        fuse(model, SpeedConfig(kernels="liger"), PackedState.of(model), torch.float32)
    assert kernels.use_liger(model, "auto") is False
    assert "not tried with a model of type bloom" in str(kernels._cannot("bloom", GPU))
    monkeypatch.setattr(kernels, "_cannot", lambda kind, device: None)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert kernels.use_liger(model, "auto") is False
    with pytest.raises(MissingDependency, match=r"liger-kernel.*pip install 'fenlei\[gpu\]'"):
        kernels.use_liger(model, "liger")


def test_the_arguments_exist_in_the_package():
    """Where it is installed."""
    patch = pytest.importorskip("liger_kernel.transformers.monkey_patch")
    import inspect

    for kind in kernels._KNOWN:
        parameters = inspect.signature(patch.MODEL_TYPE_TO_APPLY_LIGER_FN[kind]).parameters
        assert {"cross_entropy", "fused_linear_cross_entropy", "rope", "rms_norm", "model"} <= set(parameters)
        assert {"swiglu", "geglu"} & set(parameters)


@pytest.mark.parametrize("size", [1, 40, 3000])
def test_scores_in_bfloat16_are_those_of_a_float32_head(size):
    """Also where one logit of 20, which bfloat16 rounds by up to 0.06, is all of the normalizer."""
    from fenlei.modeling.fused_ops import head_scores

    draw = torch.Generator().manual_seed(size)
    weight = torch.randn(size, 64, generator=draw).bfloat16()
    # each looks into the direction of a token, more or less
    hidden = torch.stack([weight[i % size] * factor for i, factor in enumerate((0.01, 0.05, 0.3, 0.311, 0.3207, 0.4))])
    places, tokens = torch.arange(6).repeat_interleave(3), torch.randint(size, (18,), generator=draw)
    tokens[::3] = torch.arange(6) % size  # the token itself
    found = head_scores(hidden, weight, places, tokens)
    expected = torch.log_softmax(hidden.double() @ weight.double().t(), dim=-1)[places, tokens]
    assert found.dtype == torch.float32
    assert (found <= 0).all()
    assert (found - expected).abs().max() < 1e-4
    rough = torch.logsumexp((hidden @ weight.t()).float(), dim=-1)
    own = (hidden.double() @ weight.double().t())[places, tokens]
    if size > 1:
        assert (own - rough[places] - expected).abs().max() > 0.02, "negative control: with logits as bfloat16 has them"
