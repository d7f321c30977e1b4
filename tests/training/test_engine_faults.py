"""What goes wrong in a step, on the device itself: memory, and what a step must find as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from fenlei.config import RunConfig
from fenlei.errors import ConfigError, ModelError, TrainingError
from fenlei.modeling import fused_ops
from fenlei.modeling.memory import ran_out
from fenlei.training.engine import TrainingEngine
from fenlei.training.state import RandomState
from tests.training.test_engine import OutOfMemory, assert_same, engine_of, make_model, make_rows, plain, run


def test_what_torch_really_says_when_memory_runs_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 52)
    assert ran_out(caught.value), caught.value
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


LIMITED = """
import resource, sys
import torch
from tests.training.test_engine import engine_of, make_model, make_rows, run
torch.set_num_threads(1)
model, rows, said = make_model(vocab_size=20_000, tie_word_embeddings=True), make_rows(64, low=60, high=80), []
small = run(engine_of(model, 300), rows)
engine = engine_of(model, 8000, say=said.append, allocator=False)
engine._checked = True
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 16_000_000, -1))
large = run(engine, rows)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert said and "out of memory" in said[0], said
assert engine.micro_batch_tokens < 8000
assert abs(small[0] - large[0]) < 1e-4 * small[0], (small[0], large[0])
print("shrunk to", engine.micro_batch_tokens)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own address space")
def test_a_process_that_really_runs_out_of_memory_goes_on():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shrunk to" in done.stdout


def test_a_failed_pass_is_not_kept_alive_by_outputs_computed_ahead(monkeypatch):
    """Memory runs out between the query and the key projection, which were computed together."""
    model, rows = make_model("qwen3"), make_rows()
    expected = plain(model, rows)
    engine = engine_of(model)
    engine._checked = True
    held, inputs, norm = [], [], model.get_decoder().layers[1].self_attn.q_norm
    original, product = norm.forward, fused_ops.lora_linears

    def fails_once(x):
        if not held:
            held.append(weakref.ref(inputs[-1]))
            raise RuntimeError("out of memory")
        return original(x)

    def watched(x, *rest):
        inputs[:] = [x]
        return product(x, *rest)

    monkeypatch.setattr(norm, "forward", fails_once)
    monkeypatch.setattr(fused_ops, "lora_linears", watched)
    alive = []

    def look(self, *_):
        inputs.clear()
        gc.collect()
        alive.append(held[0]() is not None)

    monkeypatch.setattr(TrainingEngine, "_shrink", look)
    assert_same(run(engine, rows), expected)
    assert alive == [False]


def test_packing_is_compared_on_two_rows_even_when_the_first_step_has_one():
    model, rows = make_model(), make_rows()
    engine, compared = engine_of(model), []
    check = engine._check_packing
    engine._check_packing = lambda few: (compared.append(len(few)), check(few))
    for count in (1, 1, 5, 5):
        run(engine, rows[:count])
    assert compared == [1, 5]
    assert engine.state()["packed"] is True


def test_rows_that_could_not_be_packed_are_not_packed_after_a_resume():
    model, rows = make_model(), make_rows()
    engine = engine_of(model, state={"packed": False})
    assert_same(run(engine, rows), plain(model, rows))
    assert not engine.packed
    engine = engine_of(make_model(), state={"packed": True})
    engine._check_packing = None  # what was found before the interruption counts
    run(engine, rows)


class FakeGpu:
    """CUDA's calls for the dry run: memory grows with the tokens of the largest forward pass."""

    def __init__(self, patch, total, weights=0):
        self.peak, self.state, self.states_set = 0, torch.arange(3), []
        cuda = torch.cuda
        patch.setattr(cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
        patch.setattr(cuda, "reset_peak_memory_stats", lambda _: setattr(self, "peak", 0))
        patch.setattr(cuda, "memory_allocated", lambda _: weights)
        patch.setattr(cuda, "max_memory_allocated", lambda _: weights + self.peak)
        patch.setattr(cuda, "empty_cache", lambda: None)
        patch.setattr(cuda, "get_rng_state", lambda _: self.state)
        patch.setattr(cuda, "set_rng_state", lambda state, _: self.states_set.append(state))
        original = TrainingEngine._forward_backward

        def counted(engine, batch, total, *rest):
            self.peak = max(self.peak, batch.input_ids.numel())
            return original(engine, batch, total, *rest)

        patch.setattr(TrainingEngine, "_forward_backward", counted)

    def engine(self, model, **train):
        engine = TrainingEngine(model, RunConfig.build({"train": train}), 0)
        engine._measured, engine.device = False, SimpleNamespace(type="cuda")
        engine._collate = lambda *a, c=engine._collate, e=engine: _on_cpu(e, c, *a)
        engine._room_for_averages = lambda r=engine._room_for_averages, e=engine: _on_cpu(e, r)
        return engine


def engine_on(kind, model, state=None, say=lambda _: None, checked=True):
    """An engine that takes its model to be on a device of that kind; tensors stay on the CPU."""

    class Elsewhere:
        device = SimpleNamespace(type=kind)

    parameters = model.parameters
    model.parameters = lambda *a, **k: iter([Elsewhere]) if not (a or k) else parameters(*a, **k)
    try:
        config = RunConfig.build({"speed": {"kernels": "torch", "attention": "sdpa"}})
        engine = TrainingEngine(model, config, 0, state, say)
    finally:
        del model.parameters
    engine._checked = checked or engine._checked
    engine._collate = lambda *a, c=engine._collate, e=engine: _on_cpu(e, c, *a)
    return engine


def _on_cpu(engine, collate, *arguments):
    engine.device, gpu = torch.device("cpu"), engine.device
    try:
        return collate(*arguments)
    finally:
        engine.device = gpu


@pytest.mark.parametrize(
    ("total", "weights", "batch_size", "found"),
    # rows of about 102 tokens, 90 of them shared: 16 of them fit into 512 tokens, 100 take 1300; a little memory
    # would not hold twice 512; weights, which do not grow with the passes, count once
    [
        (10**9, 0, 16, 512),
        (10**9, 0, 100, 2048),
        (11_059, 8500, 100, 512),
    ],
)
def test_the_dry_run_takes_a_whole_step_of_the_longest_rows(monkeypatch, total, weights, batch_size, found):
    from fenlei.training import engine as module

    rows = make_rows(120, shared=90, low=9, high=10)
    monkeypatch.setattr(module, "_GPU_TOKENS", (64, 128, 512, 2048, 8192))
    gpu = FakeGpu(monkeypatch, total, weights)
    engine = gpu.engine(make_model(), batch_size=batch_size)
    engine._checked = True
    engine.fit(rows)
    assert engine.micro_batch_tokens == found
    assert gpu.states_set, "the dry run's random numbers are put back"
    assert all(p.grad is None for p in engine.model.parameters())
    engine.fit(None)  # once only


def test_a_dry_run_that_turns_to_checkpointing_looks_for_the_size_again(monkeypatch):
    """A row of 102 tokens fits only when its activations are not stored; then three do, of 90 tokens in common."""
    from fenlei.modeling.memory import checkpoints_activations
    from fenlei.training import engine as module

    rows = make_rows(40, shared=90, low=9, high=10)
    monkeypatch.setattr(module, "_GPU_TOKENS", (64, 128, 512, 2048, 8192))
    gpu, said = FakeGpu(monkeypatch, 10**9), []
    engine = gpu.engine(make_model(), batch_size=40)
    engine._checked, engine._say = True, said.append
    passes = TrainingEngine._forward_backward

    def limited(self, batch, *rest):
        if batch.input_ids.numel() > (140 if checkpoints_activations(self.model) else 90):
            raise RuntimeError("out of memory")
        return passes(self, batch, *rest)

    monkeypatch.setattr(TrainingEngine, "_forward_backward", limited)
    engine.fit(rows)
    assert "computed twice" in " ".join(said)
    assert 100 < engine.micro_batch_tokens <= 140
    assert max(len(group) for group in engine._groups(rows)) > 1


def test_the_dry_run_leaves_room_for_the_optimizers_averages(monkeypatch):
    rows = make_rows(4)
    engine = FakeGpu(monkeypatch, 10**9).engine(make_model())
    engine._checked = True
    held, step = [], engine.step

    def watched(rows):
        held.append([t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.dtype == torch.uint8])
        return step(rows)

    engine.step = watched
    engine.fit(rows)
    averages = 8 * sum(p.numel() for p in engine.model.parameters() if p.requires_grad)
    assert all(averages in sizes for sizes in held)
    assert held
    engine, empty = FakeGpu(monkeypatch, 10**9).engine(make_model()), torch.empty

    def too_little(size, *args, **kwargs):
        if size == averages:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(size, *args, **kwargs)

    monkeypatch.setattr(torch, "empty", too_little)
    with pytest.raises(TrainingError, match=r"optimizer's averages take 0\.0 GB .*lora\.method=lora"):
        engine.fit(rows)


def test_a_run_that_goes_on_elsewhere_finds_out_anew():
    """On another kind of device: of what a checkpoint says of the CPU, only the number format stays."""
    model, rows = make_model(), make_rows()
    engine = engine_of(model, 100)
    run(engine, rows)
    state = engine.state()
    assert state == {
        "device": "cpu", "micro_batch_tokens": 100, "adapter_dtype": "float32", "activation_checkpointing": False,
        "packed": True, "flash": False,
    }  # fmt: skip
    state = {**state, "packed": False, "activation_checkpointing": True, "adapter_dtype": "bfloat16"}
    for old in (state, {k: v for k, v in state.items() if k != "device"}):  # as earlier versions wrote it
        here = engine_of(model, None, state=old)
        assert (here.micro_batch_tokens, here.packed, here.adapter_dtype) == (100, False, torch.bfloat16)
    there = engine_on("mps", make_model(), state)
    assert (there.micro_batch_tokens, there.packed, there.adapter_dtype) == (2048, True, torch.bfloat16)
    assert not there.state()["activation_checkpointing"]
    assert "packed" not in engine_on("mps", make_model(), state, checked=False).state(), "compared again"


def test_flash_attention_for_rows_that_are_not_packed_is_refused():
    with pytest.raises(ConfigError, match=r"speed\.attention=flash is for packed rows"):
        RunConfig.build({"speed": {"attention": "flash", "packed": False}})
    with pytest.raises(ConfigError, match=r"speed\.kernels=liger replaces norms too"):
        RunConfig.build({"speed": {"kernels": "liger", "fused_norm": False}})
    with pytest.raises(ModelError, match=r"this model's cannot be packed: take speed\.attention=auto"):
        engine_of(make_model("gemma2", query_pre_attn_scalar=16), attention="flash")


def test_what_is_said_of_attention_is_what_is_used():
    said = []
    engine_on("mps", make_model(), say=said.append)
    engine_on("mps", make_model("gemma2", query_pre_attn_scalar=16), say=said.append)
    assert [line.split(";")[0] for line in said] == [
        "attention: scaled_dot_product_attention",
        "attention: the model's own (rows are padded side by side)",
    ]


def test_gradients_are_compared_on_any_other_device(monkeypatch):
    from fenlei.training.packing_check import PackingCheck

    asked = []
    monkeypatch.setattr(PackingCheck, "passes", lambda self, model, **how: asked.append(how["gradients"]) or True)
    engine_on("mps", make_model())._agree(make_rows(2))
    engine_of(make_model())._agree(make_rows(2))
    assert asked == [True, False]


def test_the_gpus_random_numbers_too_are_put_back_after_out_of_memory(monkeypatch):
    gpu = FakeGpu(monkeypatch, 10**9)
    OutOfMemory(monkeypatch, 100)
    engine = gpu.engine(make_model(), micro_batch_tokens=250)
    engine._checked = True
    engine.step(make_rows())
    assert all(state is gpu.state for state in gpu.states_set)
    assert gpu.states_set


def test_an_apple_gpu_has_no_dry_run_and_random_numbers_of_its_own(monkeypatch):
    """No such device is at hand: its calls are stood in for, and none of CUDA's may be made."""

    def no_cuda(*_):
        raise AssertionError("Torch not compiled with CUDA enabled")

    for name in ("get_device_properties", "get_rng_state", "set_rng_state", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, no_cuda)
    state, put_back, emptied = torch.arange(5, dtype=torch.uint8), [], []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", put_back.append)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    # the engine asks the model's first parameter where it is
    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    engine = engine_on("mps", model)
    tokens = engine.micro_batch_tokens
    engine.fit(rows)
    assert engine.micro_batch_tokens == tokens == 2048
    OutOfMemory(monkeypatch, 100)
    assert_same(run(engine, rows), expected)
    assert emptied
    assert put_back
    assert all(found is state for found in put_back)
    kept = RandomState.take()
    assert kept.tensors["mps"] is state
    put_back.clear()
    kept.restore()
    assert put_back == [state]


def test_the_passes_that_did_not_fit_are_halved_not_those_without_their_common_beginning(monkeypatch):
    """Four rows a pass behind 60 tokens that were computed before; with them, only one row would fit the budget."""
    model, rows = make_model(), make_rows(9, shared=60, low=20, high=21)
    expected = plain(model, rows)
    memory, said = OutOfMemory(monkeypatch, 60), []
    engine = engine_of(model, 100, say=said.append)
    engine._checked = True
    assert max(len(group) for group in engine._groups(rows, 60)) == 4
    assert max(len(group) for group in engine._groups(rows)) == 1
    assert_same(run(engine, rows), expected, 5e-5)
    assert memory.failures == 1
    assert 24 <= engine.micro_batch_tokens <= 50
    assert "activations" not in " ".join(said)
    assert not engine.state()["activation_checkpointing"]


def test_shared_tokens_count_once_when_passes_are_halved(monkeypatch):
    """16 rows of 87 tokens, 69 of them shared, are one pass of some 360: half of that is what is tried next."""
    model, rows = make_model(), make_rows(16, shared=69, low=15, high=16)
    memory = OutOfMemory(monkeypatch, 300)
    engine = engine_of(model, 16_384)
    engine._checked = True
    run(engine, rows)
    assert memory.failures == 1
    assert 150 < engine.micro_batch_tokens < 200


def test_very_short_rows_come_to_passes_of_one_row(monkeypatch):
    model, rows = make_model(), make_rows(9, shared=40, low=1, high=2)
    expected = plain(model, rows)
    memory = OutOfMemory(monkeypatch, 6)
    engine = engine_of(model, 16)
    engine._checked = True
    assert_same(run(engine, rows), expected, 5e-5)
    assert memory.failures


def test_memory_that_runs_out_in_the_comparison_before_the_first_step(monkeypatch):
    from fenlei.training.packing_check import PackingCheck

    model, rows = make_model(), make_rows()
    expected = plain(model, rows)
    passes, calls = PackingCheck.passes, []

    def first_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return passes(self, *args, **kwargs)

    monkeypatch.setattr(PackingCheck, "passes", first_fails)
    engine = engine_of(model)
    assert_same(run(engine, rows), expected)
    assert (len(calls), engine.packed) == (2, True)
