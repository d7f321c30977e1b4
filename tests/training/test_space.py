"""What a run says when the disk is full, or memory runs out where no step can be made smaller."""

from __future__ import annotations

import errno
import re

import pytest
import torch

from fenlei import TextClassifier
from fenlei.errors import TrainingError
from fenlei.training import run as module
from fenlei.training.checkpoints import CheckpointStore
from tests.training.test_run import deeper


@pytest.mark.parametrize(("name", "advice"), [("note_run", "start again"), ("publish", "go on with --resume")])
def test_a_full_disk_says_how_much_the_rest_takes_and_what_to_do(
    tmp_path, train_file, tiny_settings, monkeypatch, name, advice
):
    """Before the first checkpoint there is nothing to go on from."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(args[-1]))

    monkeypatch.setattr(module, name, full)
    with pytest.raises(TrainingError) as caught:
        TextClassifier(config=tiny_settings).fit(train_file, out=tmp_path / "run")
    said = re.search(
        r"the rest of the run takes about ([\d.]+) MB, .* are free there\. Make room, then (.*)$", str(caught.value)
    )
    assert said, caught.value
    assert said[2] == advice
    assert 1 < float(said[1]) < 30, "two checkpoints, the best, the one being written and the classifier: 22 MB"
    monkeypatch.undo()
    going_on = advice != "start again"
    assert (CheckpointStore(tmp_path / "run" / "checkpoints", 2).latest() is not None) is going_on
    assert TextClassifier(config=tiny_settings).fit(train_file, out=tmp_path / "run", resume=going_on).classes_


def test_memory_that_runs_out_in_the_optimizer_is_no_stack_trace(tmp_path, train_file, tiny_settings, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(torch.optim.AdamW, "step", too_much)
    with pytest.raises(TrainingError, match=r"out of memory \(CUDA .* 2\.00 GiB\.\).*smaller model.*--resume"):
        TextClassifier(config=deeper(tiny_settings, train={"epochs": 1})).fit(train_file, out=tmp_path / "run")
