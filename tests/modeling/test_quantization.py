"""4-bit base weights: bitsandbytes runs on the CPU too, so the whole way is tested wherever the package is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from fenlei import TextClassifier
from fenlei.artifact import read_artifact
from fenlei.config import LoraConfig, ModelConfig, RunConfig
from fenlei.errors import ConfigError, MissingDependency, TrainingError
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.loading import load_model, parameter_count
from tests.training.test_engine import assert_same, engine_of, make_rows, plain, run
from tests.training.test_run import deeper

NF4 = {"model": {"quantization": "nf4"}}


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.fixture
def settings(tiny_settings):
    return deeper(tiny_settings, **NF4, train={"epochs": 8, "save_steps": 2, "keep_checkpoints": 20})


def test_without_the_package_it_is_named(tiny_folder, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MissingDependency, match=r"bitsandbytes.*pip install 'fenlei\[gpu\]'"):
        load_model(tiny_folder, ModelConfig(device="cpu", quantization="nf4"))


@pytest.mark.parametrize("method", ["full", "pissa"])
def test_methods_that_need_whole_weights_are_refused(method):
    with pytest.raises(ConfigError, match=f"lora.method={method} reads and writes whole weights"):
        RunConfig.build({**NF4, "lora": {"method": method}})


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_equal_the_plain_ones(tiny_folder, bitsandbytes, method):
    model = load_model(tiny_folder, ModelConfig(dtype="float32", device="cpu", quantization="nf4"))
    whole = load_model(tiny_folder, ModelConfig(dtype="float32", device="cpu"))
    assert parameter_count(model)[1] == parameter_count(whole)[1]
    assert type(model.model.layers[0].self_attn.q_proj) is bitsandbytes.nn.Linear4bit
    assert type(model.lm_head) is torch.nn.Linear
    model = add_adapter(model, LoraConfig(method=method), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    model.train()
    rows = make_rows(5)
    expected = plain(model, rows)
    engine = engine_of(model)
    assert_same(run(engine, rows), expected, 1e-3)
    assert (engine.fused["projections"], engine.fused["mlp"]) == (0, 0), "left to PEFT"
    assert engine.packed
    # scoring in between must not change how weights are kept: what bitsandbytes does on some CPUs passes no gradients
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([rows[0].input_ids]))
    assert_same(run(engine, rows), expected, 1e-3)


def test_a_classifier_on_a_4_bit_base(tmp_path, train_file, settings, bitsandbytes, rows):
    """Trained, resumed, saved, and loaded in a fresh process."""
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    classifier = TextClassifier(config=settings).fit(train_file, out=whole)
    artifact = read_artifact(whole)
    assert artifact.manifest["base_model"]["quantization"] == "nf4"
    from safetensors.torch import load_file

    saved = load_file(artifact.path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in saved.items())

    TextClassifier(config=deeper(settings, train={"max_steps": 4})).fit(train_file, out=run_dir)
    with pytest.raises(TrainingError, match=r"model\.quantization was nf4, is none"):
        TextClassifier(config=deeper(settings, model={"quantization": "none"})).fit(
            train_file, out=run_dir, resume=True
        )
    for extra in (run_dir / "classifier").rglob("*"):
        assert "quant" not in extra.name
    resumed = TextClassifier(config=settings).fit(train_file, out=run_dir, resume=True)
    assert resumed.result.steps == classifier.result.steps > 4

    texts = [row["text"] for row in rows]
    code = (
        "import json, sys; from fenlei import TextClassifier; "
        "c = TextClassifier.load(sys.argv[1]); "
        "print(json.dumps([c.config.model.quantization, c.predict_proba(json.loads(sys.argv[2])).tolist()]))"
    )
    command = [sys.executable, "-c", code, str(whole), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    quantization, found = json.loads(done.stdout.splitlines()[-1])
    assert quantization == "nf4"
    assert torch.allclose(torch.tensor(found), torch.tensor(classifier.predict_proba(texts).tolist()), atol=1e-6)
    # on the weights that were quantized, too: near, not equal
    near = TextClassifier.load(whole, overrides=["model.quantization=none"]).predict_proba(texts)
    assert not torch.equal(torch.tensor(near.tolist()), torch.tensor(found))
