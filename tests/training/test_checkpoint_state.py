"""What a checkpoint holds of a run: read back exactly, never a pickle, and the settings of the resumed run count."""

from __future__ import annotations

import inspect
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fenlei import TextClassifier
from fenlei.artifact import read_artifact, read_json, sha256_of, write_json
from fenlei.errors import ArtifactError, FenleiError, TrainingError
from fenlei.training import checkpoints
from fenlei.training.checkpoints import MANIFEST
from fenlei.training.resume import ResumableTrainer
from fenlei.training.state import LossSum, RandomState, read_state, restore_optimizer, restore_scheduler, write_state
from tests.conftest import SENTENCES
from tests.training.test_run import deeper

CANARY = "pickle-was-opened"


class Canary:
    """Unpickled, it leaves a mark."""

    def __init__(self, folder: Path) -> None:
        self.mark = str(folder / CANARY)

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_folder):
    """A run of four steps with checkpoints at 2 and 4, made once."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"text": t, "category": list(SENTENCES), "output": k} for k, texts in SENTENCES.items() for t in texts]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0},
        "prompt": {"max_length": 256},
        "lora": {"r": 8, "alpha": 32},
        "train": {"max_steps": 4, "save_steps": 2, "keep_checkpoints": 2, "batch_size": 4, "oversample": 0.0},
        "tracking": {"trackers": []},
    }
    TextClassifier(config=settings).fit(folder / "train.jsonl", out=folder / "run")
    return folder / "run", settings


@pytest.fixture
def interrupted(tmp_path, made):
    """A copy of that run, and settings for going on to step 6."""
    run, settings = made
    return shutil.copytree(run, tmp_path / "run"), deeper(settings, train={"max_steps": 6})


def resume(run: Path, settings: dict, train_file: Path):
    return TextClassifier(config=settings).fit(train_file, out=run, resume=True).result


def seal(checkpoint: Path) -> None:
    """What somebody who wants a file to be opened would do: list it as it is now."""
    manifest = read_json(checkpoint / MANIFEST)
    del manifest["sha256"]
    files = [f for f in sorted(checkpoint.rglob("*")) if f.is_file() and f.name != MANIFEST]
    manifest["files"] = {f.name: {"size": f.stat().st_size, "sha256": sha256_of(f)} for f in files}
    write_json(checkpoint / MANIFEST, {**manifest, "sha256": checkpoints._content_digest(manifest)})


def test_only_json_and_safetensors_are_written(interrupted):
    run, _ = interrupted
    assert {p.suffix for p in (run / "checkpoints").rglob("*") if p.is_file()} == {".json", ".safetensors"}


# every name that the Trainer, accelerate or PEFT opens when they find it
PICKLES = [
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth",
    "training_args.bin", "pytorch_model.bin", "adapter_model.bin", "pytorch_model_fsdp.bin", "random_states_0.pkl",
]  # fmt: skip


@pytest.mark.parametrize("listed", [False, True])
def test_a_pickle_is_never_opened(interrupted, train_file, tmp_path, listed, capsys):
    run, settings = interrupted
    newest = run / "checkpoints" / "step-00000004"
    for name in PICKLES:
        (newest / name).write_bytes(pickle.dumps(Canary(tmp_path)))
    if listed:
        seal(newest)
    assert resume(run, settings, train_file).steps == 6
    assert not (tmp_path / CANARY).exists()
    if listed:  # the checkpoint before was taken
        assert "lists adapter_model.bin; a checkpoint holds JSON" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "trainer_state.json",
        MANIFEST,
    ],
)
def test_a_pickle_under_the_name_of_a_file_that_is_opened_is_refused(interrupted, train_file, tmp_path, name):
    run, settings = interrupted
    newest = run / "checkpoints" / "step-00000004"
    (newest / name).write_bytes(pickle.dumps(Canary(tmp_path)))
    if name != MANIFEST:
        seal(newest)
        with pytest.raises(FenleiError, match=name.replace(".", r"\.")):
            resume(run, settings, train_file)
    else:
        assert resume(run, settings, train_file).steps == 6, "from the checkpoint before"
    assert not (tmp_path / CANARY).exists()


def test_the_canary_sings(tmp_path):
    """Negative control."""
    pickle.loads(pickle.dumps(Canary(tmp_path)))
    assert (tmp_path / CANARY).exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_trainer_alone_would_open_pickles(interrupted, train_file, tmp_path, monkeypatch):
    """Negative control: what our own methods stand in front of."""
    from transformers import Trainer

    run, settings = interrupted
    newest = run / "checkpoints" / "step-00000004"
    (newest / "rng_state.pth").write_bytes(pickle.dumps(Canary(tmp_path)))
    monkeypatch.setattr(ResumableTrainer, "_load_rng_state", Trainer._load_rng_state)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        resume(run, settings, train_file)


def test_all_methods_that_replace_the_trainers_own_exist_there():
    """A private method that is renamed in a later transformers would silently no longer be replaced."""
    from transformers import Trainer

    for name, own in vars(ResumableTrainer).items():
        if inspect.isfunction(own) and name not in ("_read_again", "save_before_this_step"):
            theirs = inspect.signature(getattr(Trainer, name)).parameters
            for parameter in inspect.signature(own).parameters.values():
                assert parameter.name in theirs or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def small_model(seed: int = 0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    groups = [
        {"params": [model[0].weight, model[2].weight]},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, optimizer, scheduler


def step(model, optimizer, scheduler) -> None:
    optimizer.zero_grad()
    x = torch.randn(5, 3) + random.random() + np.random.rand()
    model(x).square().sum().backward()
    optimizer.step()
    scheduler.step()


def test_going_on_from_the_state_is_exact(tmp_path):
    whole = small_model()
    for _ in range(3):
        step(*whole)
    np.random.standard_normal()  # leaves half a Gaussian behind
    random.gauss(0, 1)
    loss = LossSum(0.1 + 0.2, 1e-17, 7)
    write_state(tmp_path, model=whole[0], optimizer=whole[1], scheduler=whole[2], loss=loss)
    weights = {k: v.clone() for k, v in whole[0].state_dict().items()}
    for _ in range(3):
        step(*whole)
    drawn = (random.gauss(0, 1), np.random.standard_normal(), torch.rand(1))

    model, optimizer, scheduler = small_model(seed=1)
    model.load_state_dict(weights)
    state = read_state(tmp_path)
    assert state.loss == loss
    restore_optimizer(state, model=model, optimizer=optimizer, folder=tmp_path)
    restore_scheduler(state, scheduler)
    state.random.restore()
    for _ in range(3):
        step(model, optimizer, scheduler)
    assert (random.gauss(0, 1), np.random.standard_normal(), torch.rand(1)) == drawn
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[0].state_dict()[name])
    assert scheduler.get_last_lr() == whole[2].get_last_lr()


def test_a_changed_learning_rate_and_decay_take_effect(tmp_path):
    model, optimizer, scheduler = small_model()
    step(model, optimizer, scheduler)
    write_state(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, loss=LossSum(0.0, 0.0, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    state = read_state(tmp_path)
    restore_optimizer(state, model=model, optimizer=optimizer, folder=tmp_path)
    restore_scheduler(state, scheduler)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.3)
    assert all(optimizer.state[p]["step"] == 1 for p in model.parameters())


def test_the_state_of_another_model_is_refused(tmp_path):
    model, optimizer, scheduler = small_model()
    step(model, optimizer, scheduler)
    write_state(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, loss=LossSum(0.0, 0.0, 0))
    state = read_state(tmp_path)
    other = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with pytest.raises(ArtifactError, match=r"exp_avg.* of 0\.weight has shape \(4, 3\), the parameter \(5, 3\)"):
        restore_optimizer(state, model=other, optimizer=torch.optim.AdamW(other.parameters()), folder=tmp_path)
    other = torch.nn.Linear(3, 4)
    with pytest.raises(ArtifactError, match=r"another model: it has no parameter 0\.bias"):
        restore_optimizer(state, model=other, optimizer=torch.optim.AdamW(other.parameters()), folder=tmp_path)


def test_random_state_of_a_gpu_that_is_not_there_is_left_out():
    state = RandomState.take()
    RandomState({**state.tensors, "cuda.0": torch.zeros(16, dtype=torch.uint8)}, state.python, state.numpy).restore()


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("state.json", lambda c: c.pop("scheduler"), r"state\.json: damaged: KeyError"),
        ("state.json", lambda c: c["loss"].update(surprise=1), r"state\.json: damaged: TypeError"),
        ("trainer_state.json", lambda c: c.update(global_step=99), r"trainer_state\.json: damaged"),
        ("trainer_state.json", lambda c: c.update(surprise=1), r"trainer_state\.json: damaged"),
    ],
)
def test_state_that_does_not_fit_is_named(interrupted, train_file, file, change, words):
    run, settings = interrupted
    newest = run / "checkpoints" / "step-00000004"
    content = read_json(newest / file)
    change(content)
    write_json(newest / file, content)
    seal(newest)
    with pytest.raises(ArtifactError, match=words):
        resume(run, settings, train_file)


def test_weights_of_another_adapter_are_named(interrupted, train_file):
    run, settings = interrupted
    newest = run / "checkpoints" / "step-00000004"
    tensors = load_file(newest / "adapter_model.safetensors")
    name, tensor = next(iter(tensors.items()))
    save_file({**tensors, name: torch.cat([tensor, tensor])}, newest / "adapter_model.safetensors")
    seal(newest)
    with pytest.raises(ArtifactError, match=rf"another model: {name} has shape .*the model expects"):
        resume(run, settings, train_file)


def test_damaged_checkpoints_are_told_and_the_one_before_is_taken(interrupted, train_file, capsys):
    run, settings = interrupted
    file = run / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert resume(run, settings, train_file).steps == 6
    assert "passed over: " in (said := capsys.readouterr().err)
    assert "optimizer.safetensors: damaged" in said.replace("\n", "")
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").split("\n") if line]
    assert [line["message"] for line in record if "resumed" in line.get("message", "")] == [
        "resumed; 2 later lines taken back"  # the checkpoint's, and what was said of the calibration
    ]


def test_when_all_are_damaged_the_reasons_are_given_and_nothing_is_overwritten(interrupted, train_file):
    run, settings = interrupted
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "state.json").unlink()
    with pytest.raises(
        TrainingError, match=r"nothing to resume: no whole checkpoint \(.*state\.json is missing; .*--out"
    ):
        resume(run, settings, train_file)
    (run / "classifier").rename(run / "moved")
    with pytest.raises(TrainingError, match="holds a run already"):
        TextClassifier(config=settings).fit(train_file, out=run)


def test_a_finished_run_takes_no_further_step(interrupted, train_file, monkeypatch):
    """max_steps in the middle of an epoch: the Trainer alone would take one more."""
    run, settings = interrupted
    finished = deeper(settings, train={"max_steps": 4})
    assert resume(run, finished, train_file).steps == 4
    monkeypatch.delattr(ResumableTrainer, "_run_epoch")
    assert resume(run, finished, train_file).steps == 5, "negative control"


def test_early_stopping_stays_stopped(tmp_path, train_file, tiny_settings, monkeypatch):
    from fenlei.training import run as run_module

    real = run_module._Session._score_dev
    flat = {"macro_f1": 0.5, "log_loss": 1.0}
    monkeypatch.setattr(run_module._Session, "_score_dev", lambda self: {**real(self), **flat})
    settings = deeper(
        tiny_settings, data={"dev_fraction": 0.34}, train={"epochs": 20, "eval_steps": 1, "early_stopping": 3}
    )
    assert TextClassifier(config=settings).fit(train_file, out=tmp_path / "run").result.steps == 4
    assert resume(tmp_path / "run", settings, train_file).steps == 4
    patient = deeper(settings, train={"early_stopping": 5})
    assert resume(tmp_path / "run", patient, train_file).steps == 6


def test_the_rhythm_of_the_log_may_change(interrupted, train_file):
    run, settings = interrupted
    resume(run, deeper(settings, train={"max_steps": 8, "logging_steps": 3}), train_file)
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").split("\n") if line]
    assert [line["step"] for line in record if line["event"] == "train"] == [1, 6]


def test_two_processes_do_not_train_in_one_folder(interrupted, train_file):
    import fcntl
    import os

    run, settings = interrupted
    other = os.open(run, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(TrainingError, match="another process is training here"):
        resume(run, settings, train_file)
    os.close(other)
    assert resume(run, settings, train_file).steps == 6


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path, train_file, tiny_settings, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    with pytest.raises(TrainingError, match=r"takes about 2\d\.\d MB \(4 checkpoints of 1\.\d MB.*5\.0 MB are free"):
        TextClassifier(config=tiny_settings).fit(train_file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_close_to_what_a_checkpoint_takes(interrupted, tiny_folder):
    from fenlei.config import LoraConfig, ModelConfig
    from fenlei.durable import size_of
    from fenlei.modeling.adapter import add_adapter
    from fenlei.modeling.loading import load_model
    from fenlei.training.space import _SMALL_FILES, checkpoint_bytes

    run, _ = interrupted
    model = add_adapter(
        load_model(tiny_folder, ModelConfig(dtype="float32", device="cpu")), LoraConfig(r=8, alpha=32), 0
    )
    tensors = checkpoint_bytes(model) - _SMALL_FILES
    newest = run / "checkpoints" / "step-00000004"
    actual = size_of(newest)
    assert tensors < actual < tensors + _SMALL_FILES
    files = ("adapter_model.safetensors", "optimizer.safetensors")
    assert sum((newest / f).stat().st_size for f in files) == pytest.approx(tensors, rel=0.2)


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("lora", "bfloat16"), ("dora", "float32"), ("pissa", "bfloat16"), ("full", "float32"), ("full", "bfloat16")],
)
def test_every_method_goes_on_exactly(tmp_path, train_file, tiny_settings, method, dtype):
    settings = deeper(
        tiny_settings,
        model={"dtype": dtype},
        lora={"method": method, "dropout": 0.1 if method != "full" else 0.0, "r": 4},
        train={"max_steps": 5, "save_steps": 1, "learning_rate": 1e-3},
    )
    TextClassifier(config=settings).fit(train_file, out=tmp_path / "whole" / "run")
    publish = checkpoints.CheckpointStore.publish

    def publish_and_die(self, folder, step, *args, **kwargs):
        publish(self, folder, step, *args, **kwargs)
        if step == 2:
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.CheckpointStore, "publish", publish_and_die)
        with pytest.raises(PowerCut):
            TextClassifier(config=settings).fit(train_file, out=tmp_path / "cut" / "run")
    resume(tmp_path / "cut" / "run", settings, train_file)
    whole, cut = (read_artifact(tmp_path / name / "run").manifest["files"] for name in ("whole", "cut"))
    assert whole == cut
