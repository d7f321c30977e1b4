"""The warning before the first step."""

from __future__ import annotations

import pytest
import torch

from fenlei.modeling.memory import checkpoint_activations
from fenlei.training import foresight
from fenlei.training.foresight import available_bytes, memory_warning, pass_bytes
from tests.training.test_engine import engine_of, make_model, make_rows, run


def stored_bytes(model, rows) -> int:
    """What autograd really keeps for the backward pass of a step, the weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    engine = engine_of(model, 100_000, share_prefix=False)
    engine._checked = True
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(engine, rows)
    return sum(kept.values())


@pytest.mark.parametrize("length", [60, 400])
def test_the_estimate_is_of_the_right_size(length):
    model = make_model(hidden_size=256, intermediate_size=1024, head_dim=64)
    rows = make_rows(2, shared=0, low=length, high=length + 1)
    longest = max(len(r.input_ids) for r in rows)
    estimate = pass_bytes(model, longest, sum(len(r.input_ids) for r in rows))
    assert 0.5 < estimate / stored_bytes(model, rows) < 2


def test_it_warns_only_where_memory_is_short(monkeypatch, tmp_path):
    model, rows = make_model(), make_rows()
    assert memory_warning(model, rows, 1152) is None
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    monkeypatch.setattr(foresight, "_MEMORY", meminfo)
    monkeypatch.setattr(foresight, "_GROUP", group)
    assert memory_warning(model, rows, 1152) is None, "nothing is known there"
    meminfo.write_text("MemTotal:   999 kB\nMemAvailable:   100 kB\n")
    assert available_bytes() == 102_400
    words = memory_warning(model, rows, 1152)
    assert "GB of memory" in words
    assert "--resume train.gradient_checkpointing=true" in words
    meminfo.write_text("MemAvailable:   99999999 kB\n")
    assert memory_warning(model, rows, 1152) is None
    for limit, warned in (("max", False), ("300000", True)):
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text("200000")
        assert bool(memory_warning(model, rows, 1152)) == warned
    assert available_bytes() == 100_000
    checkpoint_activations(model)
    assert pass_bytes(model, 100, 1152) < pass_bytes(make_model(), 100, 1152)
