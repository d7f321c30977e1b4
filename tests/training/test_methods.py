"""Each kind of adapter, and training without one: learns, is saved, loads elsewhere, resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fenlei import TextClassifier
from fenlei.artifact import CARD, read_artifact, sha256_of
from fenlei.errors import ModelError
from fenlei.training.checkpoints import CheckpointStore
from tests.training.test_run import TEXTS, deeper

METHODS = ["rslora", "dora", "pissa", "full"]  # plain LoRA is what all other tests train
WEIGHTS = {"full": "model/model.safetensors"}


def settings_of(tiny_settings, method, **groups):
    rate = 2e-3 if method == "full" else 1e-2
    train = {"epochs": 4, "save_steps": 1, "keep_checkpoints": 50, "learning_rate": rate, "logging_steps": 1}
    return deeper(deeper(tiny_settings, lora={"method": method}, train=train), **groups)


def losses(run) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").strip().split("\n")]
    return [line["loss"] for line in lines if line["event"] == "train"]


@pytest.fixture(scope="module")
def module_rows(tmp_path_factory, tiny_folder):
    from tests.conftest import SENTENCES

    rows = [{"text": t, "category": list(SENTENCES), "output": label} for label, ts in SENTENCES.items() for t in ts]
    path = tmp_path_factory.mktemp("methods") / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    base = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0},
        "prompt": {"max_length": 256},
        "lora": {"r": 8, "alpha": 32},
        "train": {"batch_size": 4, "oversample": 0.0},
        "tracking": {"trackers": []},
    }
    return path, base


@pytest.fixture(scope="module")
def fitted(module_rows):
    """One run of each kind."""
    path, base = module_rows
    runs = {}
    for method in METHODS:
        runs[method] = TextClassifier(config=settings_of(base, method)).fit(path, test=path, out=path.parent / method)
    return runs


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(fitted, method):
    course = losses(fitted[method].result.run_dir)
    assert course[-1] < 0.5 * course[0]


def test_probabilities_are_the_same_in_a_fresh_process(fitted):
    code = (
        "import sys, json; from fenlei import TextClassifier; texts = json.loads(sys.argv[1])\n"
        "for run in sys.argv[2:]:\n"
        "    c = TextClassifier.load(run, overrides=['model.device=cpu'])\n"
        "    print(json.dumps(c.predict_proba(texts).tolist()))"
    )
    runs = [str(fitted[method].result.run_dir) for method in METHODS]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TEXTS), *runs], capture_output=True, text=True, check=True
    )
    for method, line in zip(METHODS, done.stdout.strip().split("\n"), strict=True):
        assert np.array(json.loads(line)) == pytest.approx(fitted[method].predict_proba(TEXTS), abs=1e-5), method


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_and_the_reported_scores(fitted, module_rows, method, tmp_path):
    loaded = TextClassifier.load(fitted[method].save(tmp_path / "copy"), overrides=["model.device=cpu"])
    metrics = loaded.evaluate(module_rows[0])
    assert metrics["log_loss"] == pytest.approx(fitted[method].result.test["log_loss"], abs=1e-5)
    for name, digest in loaded.manifest["files"].items():
        assert sha256_of(tmp_path / "copy" / name) == digest
        assert name == CARD or name.endswith((".json", ".safetensors", ".jinja", ".txt")), name


@pytest.mark.parametrize("method", METHODS)
def test_resume_equals_uninterrupted(fitted, module_rows, method, tmp_path, monkeypatch):
    from fenlei.training.trainer import ClassifierTrainer

    path, base = module_rows
    save = ClassifierTrainer._save_checkpoint

    def save_and_die(self, *args):
        save(self, *args)
        if self.state.global_step == 5:
            raise RuntimeError("power cut")

    config, cut = settings_of(base, method), tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_save_checkpoint", save_and_die)
        with pytest.raises(RuntimeError, match="power cut"):
            TextClassifier(config=config).fit(path, out=cut)
    assert len(losses(cut)) == 5
    TextClassifier(config=config).fit(path, out=cut, resume=True)
    whole = fitted[method].result.run_dir
    name = f"classifier/{WEIGHTS.get(method, 'adapter/adapter_model.safetensors')}"
    assert sha256_of(cut / name) == sha256_of(whole / name)
    assert losses(cut) == losses(whole)


def test_a_resumed_pissa_run_does_not_depend_on_its_decomposition(module_rows, fitted, tmp_path, monkeypatch):
    """The start comes from the checkpoint: another one at resume changes nothing. (Another machine may find signs and
    directions of its own.)"""
    from fenlei.modeling import pissa

    path, base = module_rows
    whole = fitted["pissa"].result.run_dir
    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "classifier")
    for checkpoint in CheckpointStore(cut / "checkpoints", 50).list():
        if checkpoint.step > 5:
            shutil.rmtree(checkpoint.path)
    real = pissa.principal_part
    monkeypatch.setattr(pissa, "principal_part", lambda *args: tuple(-part for part in real(*args)))
    TextClassifier(config=settings_of(base, "pissa")).fit(path, out=cut, resume=True)
    name = "classifier/adapter/adapter_model.safetensors"
    assert sha256_of(cut / name) == sha256_of(whole / name)


def test_the_start_of_pissa_is_kept_by_training(fitted):
    from safetensors.torch import load_file

    store = CheckpointStore(fitted["pissa"].result.run_dir / "checkpoints", 50)
    first, last = (load_file(c.path / "adapter_model.safetensors") for c in (store.list()[0], store.list()[-1]))
    for name, tensor in first.items():
        dim = 0 if "lora_A" in name else 1
        (moved, kept), (moved_to, kept_as) = tensor.chunk(2, dim), last[name].chunk(2, dim)
        assert kept.equal(kept_as)
        assert not moved.equal(moved_to)


def test_a_saved_pissa_classifier_is_a_plain_adapter(fitted):
    config = json.loads((fitted["pissa"].result.classifier_dir / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 64, True)


def test_a_whole_model_needs_no_base_model(module_rows, tiny_folder, tmp_path):
    path, base = module_rows
    shutil.copytree(tiny_folder, tmp_path / "base")
    for method in ("full", "rslora"):
        settings = settings_of(base, method, model={"spec": str(tmp_path / "base")}, train={"epochs": 1})
        TextClassifier(config=settings).fit(path, out=tmp_path / method)
    shutil.rmtree(tmp_path / "base")
    assert TextClassifier.load(tmp_path / "full").classes_
    assert read_artifact(tmp_path / "full").manifest["base_model"]["sha256"], "what it began as is still noted"
    with pytest.raises(ModelError, match="base model cannot be found"):
        TextClassifier.load(tmp_path / "rslora")  # negative control


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])
def test_in_bfloat16_too_what_is_reported_is_what_is_saved(module_rows, method, tmp_path):
    """To the bit, also where an adapter's products were trained in another format than they are used in."""
    path, base = module_rows
    settings = settings_of(
        base, method, model={"dtype": "bfloat16"}, speed={"adapter_dtype": "float32"}, train={"save_steps": 100}
    )
    classifier = TextClassifier(config=settings).fit(path, out=tmp_path / "run")
    here = classifier.predict_proba(TEXTS)
    there = TextClassifier.load(tmp_path / "run", overrides=["model.device=cpu"]).predict_proba(TEXTS)
    assert np.array_equal(here, there)
    if method == "full":
        from safetensors.torch import load_file

        saved = load_file(tmp_path / "run" / "classifier" / "model" / "model.safetensors")
        assert {str(t.dtype) for t in saved.values()} == {"torch.bfloat16"}


def test_without_undoing_what_is_for_training_the_report_would_differ(module_rows, tmp_path, monkeypatch):
    """Negative control."""
    from fenlei.training import run as run_module

    monkeypatch.setattr(run_module, "finish_training", lambda model: None)
    path, base = module_rows
    speed = {"adapter_dtype": "float32"}
    settings = settings_of(base, "lora", model={"dtype": "bfloat16"}, speed=speed, train={"save_steps": 100})
    classifier = TextClassifier(config=settings).fit(path, out=tmp_path / "run")
    here = classifier.predict_proba(TEXTS)
    there = TextClassifier.load(tmp_path / "run", overrides=["model.device=cpu"]).predict_proba(TEXTS)
    assert not np.array_equal(here, there)


def test_the_learning_rate_of_full_is_said(module_rows, tmp_path, capsys):
    path, base = module_rows
    del (settings := settings_of(base, "full", train={"max_steps": 1}))["train"]["learning_rate"]
    classifier = TextClassifier(config=settings).fit(path, out=tmp_path / "run")
    assert classifier.config.train.learning_rate == 2e-5
    assert "learning rate 2e-05: the default with lora.method=full" in capsys.readouterr().err
    assert "learning_rate: 2.0e-05" in (tmp_path / "run" / "config.yaml").read_text("utf-8")


def test_too_little_memory_leaves_nothing_behind(module_rows, tmp_path, monkeypatch):
    from fenlei.modeling import full

    path, base = module_rows
    monkeypatch.setattr(full, "free_memory", lambda device: 10**5)
    with pytest.raises(ModelError, match="16 bytes each"):
        TextClassifier(config=settings_of(base, "full")).fit(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_with_another_method_or_layers_is_refused(fitted, module_rows):
    from fenlei.errors import TrainingError

    path, base = module_rows
    run = fitted["rslora"].result.run_dir
    with pytest.raises(TrainingError, match=r"lora\.method was rslora, is dora"):
        TextClassifier(config=settings_of(base, "dora")).fit(path, out=run, resume=True)
    settings = settings_of(base, "rslora", lora={"layers": "last:1", "method": "rslora"})
    with pytest.raises(TrainingError, match=r"lora\.layers was None, is last:1"):
        TextClassifier(config=settings).fit(path, out=run, resume=True)
