"""Every fast path against the plainest one: each row alone, all logits, the prompt masked, PEFT's own layers."""

from __future__ import annotations

import random

import pytest
import torch

from fenlei.config import LoraConfig, RunConfig, SpeedConfig
from fenlei.errors import TrainingError
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.fuse import unfuse
from fenlei.modeling.memory import ran_out
from fenlei.training.dataset import TrainingRow
from fenlei.training.engine import TrainingEngine
from fenlei.training.microbatches import packed_batch, shared_length, split_rows

PAD = 0
SWITCHES = [name for name, field in SpeedConfig.model_fields.items() if field.annotation is bool]


def make_rows(count=9, shared=13, seed=0, low=4, high=40):
    draw = random.Random(seed)
    beginning = [draw.randrange(5, 300) for _ in range(shared)]
    rows = []
    for _ in range(count):
        prompt = beginning + [draw.randrange(5, 300) for _ in range(draw.randrange(low, high))]
        answer = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 4))] + [2]
        rows.append(TrainingRow(prompt + answer, len(prompt)))
    return rows


def make_model(kind="qwen2", dtype=torch.float32, lora=None, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = dict(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.2, pad_token_id=PAD,
    )  # fmt: skip
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    attention = "eager" if kind == "gemma2" else "sdpa"  # as load_model chooses
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.requires_grad_(False)
    model = add_adapter(model, lora or LoraConfig(), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:  # an adapter that does nothing would have no gradient for A
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def plain(model, rows):
    """Mean loss over all answer tokens, and its gradients; nothing of ours takes part."""
    model.zero_grad()
    total = sum(len(r.input_ids) - r.answer_start for r in rows)
    loss = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0].float()
        targets = torch.tensor(row.input_ids[row.answer_start :])
        part = torch.nn.functional.cross_entropy(logits[row.answer_start - 1 : -1], targets, reduction="sum") / total
        part.backward()
        loss += float(part.detach())
    return loss, grads(model)


def grads(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def engine_of(model, tokens=160, say=lambda _: None, state=None, **speed):
    config = RunConfig.build({"train": {"micro_batch_tokens": tokens}, "speed": speed})
    return TrainingEngine(model, config, PAD, state, say)


def run(engine, rows):
    engine.model.zero_grad()
    return engine.step(rows), grads(engine.model)


def assert_same(found, expected, tolerance=2e-5):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert any(g.abs().max() > 1e-3 for g in expected[1].values())
    for name, gradient in expected[1].items():
        size = float(gradient.abs().max())
        assert float((found[1][name] - gradient).abs().max()) <= tolerance * max(size, 1e-2), name


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_loss_and_gradients_equal_the_plain_ones(off):
    """With everything on, and with each switch off."""
    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    engine = engine_of(model, **({off: False} if off else {}))
    assert_same(run(engine, rows), expected)
    assert engine.packed == (off != "packed")
    if off is None:
        assert engine.fused == {"norm": 7, "projections": 12, "mlp": 3, "last_layer": 1, "head": 1}


ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},  # caps its scores: must fall back
    "phi3": {"num_key_value_heads": 4},  # one matrix for query, key and value
    "olmo2": {},
}


@pytest.mark.parametrize("off", [None, *SWITCHES])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind, off):
    targets = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj") if kind == "phi3" else LoraConfig().target_modules
    model = make_model(kind, lora=LoraConfig(target_modules=targets), **ARCHITECTURES[kind])
    rows = make_rows(6)
    expected = plain(model, rows)
    said = []
    engine = engine_of(model, say=said.append, **({off: False} if off else {}))
    assert_same(run(engine, rows), expected, 5e-5)
    assert engine.packed == (kind not in {"gemma2", "phi3"} and off != "packed")
    assert not said


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in {"gemma2", "phi3"}])
def test_attention_as_on_a_gpu_without_flash(kind, monkeypatch):
    """torch's own, with windows and groups of key heads; the same code runs on any device."""
    from fenlei.modeling import packed_attention

    model, rows = make_model(kind, **ARCHITECTURES[kind]), make_rows(6)
    expected = plain(model, rows)
    calls, own = [], packed_attention._sdpa
    monkeypatch.setattr(packed_attention, "attend", lambda *a: (calls.append(1), own(*a))[1])
    # it has no part for what was computed before, as no GPU does that
    monkeypatch.setattr(TrainingEngine, "_beginning", lambda self, rows: 0)
    engine = engine_of(model)
    assert_same(run(engine, rows), expected, 5e-5)
    assert engine.packed
    assert calls


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in {"gemma2", "phi3"}])
def test_a_beginning_computed_once_for_all_passes(kind):
    model, rows = make_model(kind, **ARCHITECTURES[kind]), make_rows(8, shared=20)
    expected = plain(model, rows)
    engine = engine_of(model, tokens=90)
    assert engine._beginning(rows) == 20
    assert len(engine._groups(rows, 20)) > 2
    assert_same(run(engine, rows), expected, 5e-5)


@pytest.mark.parametrize("settings", [{"layers": "last:1"}, {"method": "dora"}, {"method": "full"}])
def test_a_beginning_computed_once_with_other_methods(settings):
    model, rows = make_model(lora=LoraConfig(**settings)), make_rows(8, shared=20)
    expected = plain(model, rows)
    assert_same(run(engine_of(model, tokens=90), rows), expected, 5e-5)


def test_gradients_of_a_beginning_that_get_lost_would_be_seen(monkeypatch):
    """Negative control."""
    from fenlei.training.beginning import CommonBeginning

    model, rows = make_model(), make_rows(8, shared=20)
    expected = plain(model, rows)
    monkeypatch.setattr(CommonBeginning, "backward", lambda self: None)
    with pytest.raises(AssertionError):
        assert_same(run(engine_of(model, tokens=90), rows), expected, 5e-5)


def test_rows_that_share_more_with_their_neighbours_share_it_in_each_pass():
    first, second = make_rows(4, shared=60, seed=1), make_rows(4, shared=60, seed=2)
    system = [7] * 20
    rows = [TrainingRow([*system, *r.input_ids], r.answer_start + 20) for r in [*first, *second]]
    model = make_model()
    expected = plain(model, rows)
    engine = engine_of(model, tokens=200)
    assert engine._beginning(rows) == 0
    assert_same(run(engine, rows), expected, 5e-5)


@pytest.mark.parametrize("queries", [1, 7, 16])
def test_long_rows_cut_into_blocks(queries, monkeypatch):
    """Rows of a block end within different pieces, and some before the last one begins."""
    from fenlei.modeling.packed import BlockSize

    monkeypatch.setattr(BlockSize, "of", classmethod(lambda cls, model: cls(4, queries=queries)))
    model, rows = make_model(), make_rows(low=30, high=40)
    expected = plain(model, rows)
    assert_same(run(engine_of(model), rows), expected, 5e-5)


def test_shared_tokens_that_see_only_one_row_would_be_seen(monkeypatch):
    """Negative control: with the gradient of the second row's look at the shared tokens lost, the test above fails."""
    from fenlei.modeling import packed

    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    block = packed._causal_block

    def blind(starts, lengths, shared, *rest):
        made = block(starts, lengths, shared, *rest)
        if shared and made.keys.shape[1] > made.queries.shape[1]:
            made.keys[-1, 0] = made.keys[-1, 1]
        return made

    monkeypatch.setattr(packed, "_causal_block", blind)
    engine = engine_of(model)
    engine._checked = True
    found = run(engine, rows)
    assert found[0] != pytest.approx(expected[0], rel=1e-4)


def test_packing_that_goes_wrong_is_noticed_and_left_off(monkeypatch):
    """The check that runs before the first step, with attention broken on purpose."""
    from fenlei.modeling import packed_attention

    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    monkeypatch.setattr(packed_attention, "attend", lambda q, k, v, *_: v.repeat_interleave(2, 0).transpose(0, 1))
    said = []
    engine = engine_of(model, say=said.append)
    assert_same(run(engine, rows), expected)
    assert not engine.packed
    assert "cannot be packed" in said[0]


@pytest.mark.parametrize(
    "change", [{"method": "dora"}, {"dropout": 0.1}, {"layers": "1-2"}, {"target_modules": ("q_proj", "down_proj")}]
)
def test_adapters_that_are_not_fused_or_only_partly(change):
    model, rows = make_model(lora=LoraConfig(**change)), make_rows()
    model.eval()
    expected = plain(model, rows)
    engine = engine_of(model)
    model.train = lambda mode=True: model  # dropout stays off: its random numbers fall in another order
    assert_same(run(engine, rows), expected)


def test_bfloat16_stays_near_float32():
    """The fused layers lose no more to rounding than PEFT's own."""
    exact = plain(make_model().float(), make_rows())
    model = make_model(dtype=torch.bfloat16)
    peft = plain(model, make_rows())
    for dtype in ("float32", "bfloat16"):
        ours = run(engine_of(model, adapter_dtype=dtype), make_rows())
        assert ours[0] == pytest.approx(exact[0], rel=0.02)
        assert distance(ours[1], exact[1]) < 1.5 * distance(peft[1], exact[1]) + 0.01
        unfuse(model)


def distance(found, expected):
    apart = sum(float((found[n] - g).square().sum()) for n, g in expected.items())
    return (apart / sum(float(g.square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("tokens", [40, 100, 10_000])
def test_the_budget_changes_nothing_but_memory(tokens):
    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    assert_same(run(engine_of(model, tokens), rows), expected)


def test_activation_checkpointing():
    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    engine = engine_of(model, state={"micro_batch_tokens": 100, "activation_checkpointing": True})
    assert_same(run(engine, rows), expected)
    assert engine.state()["activation_checkpointing"] is True


class OutOfMemory:
    """Stands in for a device that holds ``limit`` tokens a forward pass."""

    def __init__(self, monkeypatch, limit, message="[enforce fail] DefaultCPUAllocator: not enough memory"):
        self.limit, self.failures, self.seen = limit, 0, []
        original = TrainingEngine._forward_backward

        def limited(engine, batch, total, *rest):
            self.seen.append(batch.input_ids.numel())
            if batch.input_ids.numel() > self.limit:
                self.failures += 1
                raise RuntimeError(message)
            return original(engine, batch, total, *rest)

        monkeypatch.setattr(TrainingEngine, "_forward_backward", limited)


def test_out_of_memory_shrinks_the_forward_pass_only(monkeypatch):
    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    memory = OutOfMemory(monkeypatch, 100)
    said = []
    engine = engine_of(model, 250, say=said.append)
    assert_same(run(engine, rows), expected)
    assert memory.failures > 0
    assert engine.micro_batch_tokens <= 125
    assert "out of memory" in said[0]
    failures = memory.failures
    assert_same(run(engine, rows), expected)
    assert memory.failures == failures, "the next step begins with what fits"


def test_gradients_of_a_failed_attempt_are_not_counted(monkeypatch):
    """Negative control of the line that clears them."""
    model, rows = make_model(), make_rows(4, low=20, high=40)
    expected = plain(model, rows)
    longest = max(len(r.input_ids) for r in rows)
    rows.sort(key=lambda r: r.input_ids)
    assert len(rows[0].input_ids) < longest, "the failure comes after a forward pass that worked"
    memory = OutOfMemory(monkeypatch, longest - 1)
    engine = engine_of(model, 16, state={"micro_batch_tokens": 16})
    monkeypatch.setattr(TrainingEngine, "_shrink", lambda self, *_: setattr(memory, "limit", 1000))
    model.zero_grad()
    monkeypatch.setattr(model, "zero_grad", lambda **_: None)
    engine.step(rows)
    with pytest.raises(AssertionError):
        assert_same((expected[0], grads(model)), expected)


@pytest.mark.parametrize("restored", [True, False])
def test_dropout_draws_the_same_numbers_after_out_of_memory(monkeypatch, restored):
    """Memory runs out in the second forward pass, when the first has drawn already. Else: negative control."""
    rows = make_rows(4, low=20, high=21)
    found = []
    for fails in (False, True):
        model, passes, original = make_model(lora=LoraConfig(dropout=0.5)), [], TrainingEngine._forward_backward

        def second_fails(engine, *args, original=original, passes=passes, fails=fails):
            loss = original(engine, *args)
            passes.append(1)
            if fails and len(passes) == 2:
                raise RuntimeError("out of memory")
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(TrainingEngine, "_forward_backward", second_fails)
            patch.setattr(TrainingEngine, "_shrink", lambda *_: None)  # passes of one row each as they are
            if not restored:
                patch.setattr(TrainingEngine, "_set_random_state", lambda *_: None)
            engine = engine_of(model, 30)
            engine._checked = True
            torch.manual_seed(7)
            found.append(run(engine, rows))
        assert len(passes) == (6 if fails else 4)
    if restored:
        assert_same(found[1], found[0], 1e-6)
    else:
        assert found[1][0] != pytest.approx(found[0][0], rel=1e-4)


def test_one_row_too_long_turns_to_checkpointing_then_gives_up(monkeypatch):
    model, rows = make_model(), make_rows()
    OutOfMemory(monkeypatch, 10)
    said = []
    engine = engine_of(model, say=said.append)
    with pytest.raises(TrainingError, match=r"one row of \d+ tokens.*prompt.max_length"):
        engine.step(rows)
    assert "computed twice" in said[-1]


def test_other_errors_are_not_taken_for_out_of_memory():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shape mismatch"))
    assert not ran_out(ValueError("out of memory"))


def test_rows_are_divided_whole_and_within_the_budget():
    rows = make_rows(30)
    for share in (True, False):
        groups = list(split_rows(rows, 120, share=share))
        assert sorted(map(id, rows)) == sorted(id(r) for g in groups for r in g)
        sizes = [packed_batch(g, share=share).input_ids.numel() for g in groups]
        assert max(sizes) <= 120
        assert all(len(g) <= 2 for g in split_rows(rows, 120, 2, share=share))
    assert len(list(split_rows(rows, 120))) < len(list(split_rows(rows, 120, share=False)))
    assert [len(g) for g in split_rows(rows[:3], 5)] == [1, 1, 1]


def test_shared_length_leaves_every_answer_place_to_its_row():
    twins = [TrainingRow([5, 6, 7, 8, 9, 2], 4)] * 3
    assert shared_length(twins) == 3
    assert shared_length(twins[:1]) == 0
    assert shared_length([TrainingRow([5, 6, 7, 9], 3), TrainingRow([8, 6, 7, 9], 3)]) == 0
