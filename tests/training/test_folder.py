"""The run folder: with what a run may go on, and with what it may not."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from fenlei import TextClassifier
from fenlei.errors import ModelError, TrainingError
from fenlei.training.checkpoints import CheckpointStore
from tests.training.test_run import deeper


def test_resume_with_other_settings_or_data_is_refused_and_harms_nothing(tmp_path, train_file, tiny_settings, rows):
    settings = deeper(tiny_settings, train={"epochs": 2, "save_steps": 2})
    run = tmp_path / "run"
    TextClassifier(config=settings).fit(train_file, out=run)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match=r"cannot go on: lora\.r was 8, is 16"):
        TextClassifier(config=deeper(settings, lora={"r": 16})).fit(train_file, out=run, resume=True)
    other = tmp_path / "other.jsonl"
    renamed = [{**r, "category": [c + "类" for c in r["category"]], "output": r["output"] + "类"} for r in rows]
    other.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in renamed), encoding="utf-8")
    with pytest.raises(TrainingError, match="labels was .*training rows was 12 rows"):
        TextClassifier(config=settings).fit(other, out=run, resume=True)
    assert (run / "config.yaml").read_bytes() == before
    longer = deeper(settings, train={"epochs": 3})
    assert TextClassifier(config=longer).fit(train_file, out=run, resume=True).result.steps == 9


def test_resume_on_other_weights_format_or_dev_rows_is_refused(tmp_path, train_file, tiny_settings, tiny_folder):
    """What the settings alone do not show: the same folder may hold another model by then."""
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    dev, other = tmp_path / "dev.jsonl", tmp_path / "other.jsonl"
    lines = train_file.read_text("utf-8").split("\n")
    dev.write_text("\n".join(lines[::3]), encoding="utf-8")
    other.write_text("\n".join(lines[1::3]), encoding="utf-8")
    settings = deeper(tiny_settings, model={"spec": str(model)}, train={"max_steps": 1}, evaluation={"ladder": []})
    run = tmp_path / "run"

    def go_on(dev=dev, **change):
        changed = deeper(settings, **{"train": {"max_steps": 2}, **change})
        return TextClassifier(config=changed).fit(train_file, dev=dev, out=run, resume=True)

    TextClassifier(config=settings).fit(train_file, dev=dev, out=run)
    with pytest.raises(TrainingError, match=r"dev rows was 4 rows, sha256 \w+, is 4 rows"):
        go_on(other)
    with pytest.raises(TrainingError, match=r"model\.dtype was float32, is bfloat16"):
        go_on(model={"dtype": "bfloat16"})
    file = model / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"weights of the base model was \w+, is \w+"):
        go_on()
    file.write_bytes(before)
    noted = json.loads((run / "run.json").read_text("utf-8"))
    for key in ("dev rows", "model.dtype", "weights of the base model"):
        del noted[key]  # as of a run that an earlier version began
    (run / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    assert go_on().result.steps == 2


@pytest.mark.parametrize(("number", "step"), [(errno.EIO, 2), (errno.EROFS, 1)])
def test_a_disk_that_fails_is_one_clear_message(tmp_path, train_file, tiny_settings, monkeypatch, number, step):
    """Not a full one: that has a message of its own."""
    settings = deeper(tiny_settings, train={"max_steps": 3, "save_steps": 1})
    run, publish = tmp_path / "run", CheckpointStore.publish

    def failing(self, folder, at, *args, **kwargs):
        if at == step:
            raise OSError(number, os.strerror(number), str(folder / "state.json"))
        return publish(self, folder, at, *args, **kwargs)

    monkeypatch.setattr(CheckpointStore, "publish", failing)
    with pytest.raises(TrainingError) as caught:
        TextClassifier(config=settings).fit(train_file, out=run)
    kept = f"the last checkpoint is {run / 'checkpoints' / 'step-00000001'}. Mend it, then go on with --resume"
    kept = kept if step == 2 else "no checkpoint can be found. Mend it, then start again"
    for words in (os.strerror(number), "state.json", kept):
        assert words in str(caught.value)


def test_memory_is_given_back_after_a_run(tmp_path, train_file, tiny_settings, monkeypatch):
    """In a notebook or server the process lives on; also after a run that failed."""
    from fenlei.training import run as run_module

    told = []
    monkeypatch.setattr(run_module, "give_memory_back", lambda: told.append(1))
    with pytest.raises(ModelError):
        TextClassifier(config=deeper(tiny_settings, model={"spec": "./absent"})).fit(train_file, out=tmp_path / "run")
    assert told
    monkeypatch.undo()
    run_module.give_memory_back()  # as often as one likes
