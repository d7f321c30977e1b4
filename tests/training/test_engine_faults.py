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
from fenlei.modeling import fused_ops
from fenlei.training.engine import TrainingEngine, out_of_memory
from fenlei.training.trainer import training_arguments
from tests.training.test_engine import OutOfMemory, assert_same, engine_of, make_model, make_rows, plain, run


def test_what_torch_really_says_when_memory_runs_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 52)
    assert out_of_memory(caught.value), caught.value
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


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

    def __init__(self, patch, total):
        self.peak, self.state, self.states_set = 0, torch.arange(3), []
        cuda = torch.cuda
        patch.setattr(cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
        patch.setattr(cuda, "reset_peak_memory_stats", lambda _: setattr(self, "peak", 0))
        patch.setattr(cuda, "max_memory_allocated", lambda _: self.peak)
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
        return engine


def _on_cpu(engine, collate, *arguments):
    engine.device, gpu = torch.device("cpu"), engine.device
    try:
        return collate(*arguments)
    finally:
        engine.device = gpu


@pytest.mark.parametrize(
    ("total", "batch_size", "found"),
    # rows of about 102 tokens, 90 of them shared: 16 of them fit into 512 tokens, 100 take 1300; a little memory
    # would not hold twice 128
    [(10**9, 16, 512), (10**9, 100, 2048), (290, 100, 128)],
)
def test_the_dry_run_takes_a_whole_step_of_the_longest_rows(monkeypatch, total, batch_size, found):
    from fenlei.training import engine as module

    rows = make_rows(120, shared=90, low=9, high=10)
    monkeypatch.setattr(module, "_GPU_TOKENS", (64, 128, 512, 2048, 8192))
    monkeypatch.setattr(TrainingEngine, "_moments", lambda self: 0)
    gpu = FakeGpu(monkeypatch, total)
    engine = gpu.engine(make_model(), batch_size=batch_size)
    engine._checked = True
    engine.fit(rows)
    assert engine.micro_batch_tokens == found
    assert gpu.states_set, "the dry run's random numbers are put back"
    assert all(p.grad is None for p in engine.model.parameters())
    engine.fit(None)  # once only


def test_the_gpus_random_numbers_too_are_put_back_after_out_of_memory(monkeypatch):
    gpu = FakeGpu(monkeypatch, 10**9)
    OutOfMemory(monkeypatch, 100)
    engine = gpu.engine(make_model(), micro_batch_tokens=250)
    engine._checked = True
    engine.step(make_rows())
    assert all(state is gpu.state for state in gpu.states_set)
    assert gpu.states_set


def test_a_constant_rate_rises_too(tmp_path):
    """transformers' schedule "constant" ignores the warm-up."""
    config = RunConfig.build({"train": {"scheduler": "constant", "warmup_fraction": 0.5}})
    from transformers import get_scheduler

    arguments = training_arguments(config, tmp_path, torch.device("cpu"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(4), 4)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.5, 1.0, 1.0]
