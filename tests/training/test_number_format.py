"""What an adapter's products are computed in: a rule, so that the same command gives the same weights."""

from __future__ import annotations

import json

import pytest
import torch

from fenlei import TextClassifier
from fenlei.artifact import read_artifact
from fenlei.config import LoraConfig, RunConfig
from fenlei.modeling import loading
from fenlei.training.number_format import adapter_dtype
from tests.training.test_engine import make_model
from tests.training.test_run import deeper


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_where_the_processor_computes_in_it(monkeypatch, native, dtype):
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: native)
    model, auto = make_model(dtype=dtype), RunConfig()
    assert adapter_dtype(model, auto) == (torch.bfloat16 if native and dtype == torch.bfloat16 else torch.float32)
    for name in ("float32", "bfloat16"):
        assert adapter_dtype(model, auto, name) == getattr(torch, name), "as before the interruption"
        assert adapter_dtype(model, RunConfig.build(overrides=[f"speed.adapter_dtype={name}"])) == getattr(torch, name)


def test_layers_that_are_pefts_own_stay_in_float32():
    assert adapter_dtype(make_model(dtype=torch.bfloat16, lora=LoraConfig(dropout=0.1)), RunConfig()) == torch.float32


def test_the_default_run_is_the_same_twice_and_says_what_it_computed_in(
    tmp_path, train_file, tiny_settings, capsys, monkeypatch
):
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: True)
    settings = deeper(tiny_settings, model={"dtype": "bfloat16"}, train={"max_steps": 2}, evaluation={"ladder": []})
    found = []
    for name in ("a", "b"):
        TextClassifier(config=settings).fit(train_file, out=tmp_path / name / "run")
        found.append(read_artifact(tmp_path / name / "run").manifest["files"])
    assert found[0] == found[1]
    words = "computed: weights in bfloat16; the adapter's products in bfloat16"
    assert words in " ".join(capsys.readouterr().err.split())
    record = [
        json.loads(line) for line in (tmp_path / "a" / "run" / "metrics.jsonl").read_text("utf-8").split("\n") if line
    ]
    assert any(line.get("message", "").startswith(words) for line in record)
