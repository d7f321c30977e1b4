"""Told to stop: what was done is saved in time, the exit code and the record say the truth, and nothing is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from fenlei import TextClassifier
from fenlei.artifact import read_artifact
from fenlei.errors import Interrupted
from fenlei.tracking import Record, TrackerGroup
from fenlei.training import callbacks, checkpoints
from fenlei.training import run as run_module
from fenlei.training.checkpoints import CheckpointStore
from tests.training.test_run import deeper

SCORED = {"epochs": 2, "eval_steps": 2, "save_steps": 2, "keep_checkpoints": 9, "early_stopping": 0}
GRACE = 30.0  # seconds that schedulers grant
HANDLERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def lines(run: Path, *events: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").split("\n") if line]
    return [line for line in found if line["event"] in events]


def course(run: Path) -> tuple:
    """What must not depend on an interruption."""
    keys = ("event", "step", "loss", "grad_norm", "learning_rate", "macro_f1", "log_loss")
    record = [[line.get(k) for k in keys] for line in lines(run, "train", "dev", "test")]
    weights = read_artifact(run).manifest["files"]["adapter/adapter_model.safetensors"]
    kept = [(c.step, c.dev["log_loss"], c.dev_due) for c in store_of(run).list() if c.dev]
    return record, weights, kept


def store_of(run: Path) -> CheckpointStore:
    return CheckpointStore(run / "checkpoints", 9)


def at_call(patch, owner, name: str, number: int, *numbers_sent: int) -> None:
    """Sends signals to this process when a function is called for the ``number``-th time."""
    real, calls = getattr(owner, name), []

    def sending(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            for sent in numbers_sent:
                signal.raise_signal(sent)
        return real(*args, **kwargs)

    patch.setattr(owner, name, sending)


@pytest.fixture
def settings(tiny_settings):
    return deeper(tiny_settings, data={"dev_fraction": 0.34}, lora={"dropout": 0.1}, train=SCORED)


_whole: list[tuple] = []


@pytest.fixture
def whole(tmp_path, train_file, settings):
    """The course of the run that nobody interrupted; run once."""
    if not _whole:
        TextClassifier(config=settings).fit(train_file, out=tmp_path / "whole")
        _whole.append(course(tmp_path / "whole"))
    return _whole[0]


def stopped(settings: dict, train_file: Path, run: Path, resume: bool = False) -> Interrupted:
    before = [signal.getsignal(number) for number in HANDLERS]
    with pytest.raises(Interrupted) as caught:
        TextClassifier(config=settings).fit(train_file, out=run, resume=resume)
    assert [signal.getsignal(number) for number in HANDLERS] == before
    assert [p.name for p in run.rglob(".*")] == []
    return caught.value


def finish(settings: dict, train_file: Path, run: Path) -> tuple:
    TextClassifier(config=settings).fit(train_file, out=run, resume=True)
    return course(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_in_the_middle_of_a_step(tmp_path, train_file, settings, whole, number, code):
    from fenlei.training.engine import TrainingEngine

    run, finished = tmp_path / "run", []
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, TrainingEngine, "_forward_backward", 3, number)
        patch.setattr(TrackerGroup, "finish", lambda self, status="completed": finished.append(status))
        error = stopped(settings, train_file, run)
    assert error.exit_code == code
    assert finished == ["interrupted"]
    assert lines(run, "note")[-1]["message"] == "run interrupted"
    assert "saved at step 3. Go on with" in str(error), "a step that is neither scored nor saved otherwise"
    assert finish(settings, train_file, run) == whole


PLACES = [
    pytest.param(run_module._Session, "_score_dev", 2, id="in a dev evaluation"),
    pytest.param(checkpoints, "fsync_tree", 1, id="while saving"),
    pytest.param(checkpoints, "replace_folder", 2, id="while publishing"),
    pytest.param(Record, "write", 3, id="while logging"),
]


@pytest.mark.parametrize(("owner", "name", "number"), PLACES)
def test_anywhere_else_in_training(tmp_path, train_file, settings, whole, owner, name, number):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, owner, name, number, signal.SIGTERM)
        assert stopped(settings, train_file, run).exit_code == 143
    assert store_of(run).latest().step <= 4
    assert finish(settings, train_file, run) == whole


def test_a_dev_evaluation_is_cut_short_and_made_up_for(tmp_path, train_file, settings, whole, monkeypatch):
    from fenlei.inference import Predictor

    run, scored = tmp_path / "run", []
    predict = Predictor.predict

    def slow(self, examples, *, progress=None, **kwargs):
        def batch(done):
            scored.append(done)
            if len(scored) == 3:
                signal.raise_signal(signal.SIGTERM)
            progress(done)

        return predict(self, examples, progress=batch, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "predict", slow)
        stopped(deeper(settings, inference={"batch_tokens": 16}), train_file, run)
    assert len(scored) == 3, "not one batch more"
    latest = store_of(run).latest()
    assert (latest.step, latest.dev, latest.dev_due) == (2, None, True)
    assert lines(run, "dev") == []
    assert finish(settings, train_file, run) == whole
    assert store_of(run).list()[0].dev_due is False


def test_without_making_up_for_it_a_score_would_be_missing(tmp_path, train_file, settings, whole, monkeypatch):
    """Negative control."""
    publish = CheckpointStore.publish
    monkeypatch.setattr(
        CheckpointStore, "publish", lambda *args, **kwargs: publish(*args, **{**kwargs, "dev_due": False})
    )
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, run_module._Session, "_score_dev", 1, signal.SIGTERM)
        stopped(settings, train_file, run)
    assert finish(settings, train_file, run) != whole


def test_again_while_the_score_is_made_up_for(tmp_path, train_file, settings, whole):
    run = tmp_path / "run"
    for resume in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, run_module._Session, "_score_dev", 1, signal.SIGTERM)
            stopped(settings, train_file, run, resume)
        assert (store_of(run).latest().step, store_of(run).latest().dev_due) == (2, True)
    assert finish(settings, train_file, run) == whole


@pytest.mark.parametrize(("owner", "name"), [(checkpoints, "fsync_tree"), (checkpoints, "replace_folder")])
def test_a_second_signal_ends_at_once_and_leaves_the_last_checkpoint(
    tmp_path, train_file, settings, whole, owner, name
):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "_SECONDS_OF_ONE_REQUEST", 0.0)  # the second one comes later
        at_call(patch, owner, name, 2, signal.SIGINT, signal.SIGTERM)
        assert stopped(settings, train_file, run).exit_code == 143, "the last one counts"
    assert store_of(run).latest().step == 2
    assert lines(run, "note")[-1]["message"] == "run interrupted"
    assert finish(settings, train_file, run) == whole


@pytest.mark.parametrize(("name", "numbers", "saved"), [("_score_dev", 2, 2), ("_take_best", 1, 6)])
def test_two_at_once_are_one(tmp_path, train_file, settings, whole, name, numbers, saved):
    """To the process group, and passed on by a wrapper: in the steps, and after them, where each ends the work."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "_SECONDS_OF_ONE_REQUEST", 60.0)
        patch.setattr(callbacks.os, "_exit", lambda code: pytest.fail("the process would have ended"))
        at_call(patch, run_module._Session, name, 1, *[signal.SIGTERM, signal.SIGINT][:numbers])
        at_call(patch, TrackerGroup, "finish", 1, signal.SIGINT)
        assert stopped(settings, train_file, run).exit_code == 143, "the first one counts"
    assert store_of(run).latest().step == saved
    assert finish(settings, train_file, run) == whole


def test_before_the_first_step(tmp_path, train_file, settings):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, run_module._Session, "load", 1, signal.SIGTERM)
        patch.setattr(Path, "rglob", lambda *a: [])  # there is no run folder to look into
        error = stopped(settings, train_file, tmp_path / "run")
    assert (error.exit_code, str(error)) == (143, "interrupted before the first checkpoint: nothing to resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["_take_best", "_save", "_report"])
def test_after_the_last_step(tmp_path, train_file, settings, whole, name):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, run_module._Session, name, 1, signal.SIGTERM)
        error = stopped(settings, train_file, run)
    assert error.exit_code == 143
    assert "saved at step 6" in str(error)
    assert finish(settings, train_file, run) == whole


def test_in_the_very_last_step(tmp_path, train_file, settings, whole):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, run_module._Session, "_score_dev", 3, signal.SIGTERM)
        assert stopped(settings, train_file, run).exit_code == 143, (
            "the rest of the run may take longer than is granted"
        )
    assert (store_of(run).latest().step, store_of(run).latest().dev_due) == (6, True)
    assert not (run / "classifier").exists()
    assert finish(settings, train_file, run) == whole


def give_up_at(patch, step: int, passes: int) -> None:
    """SIGTERM in a forward pass of a step, or before all (0); the step is then taken to last too long."""
    from fenlei.training.engine import TrainingEngine

    patch.setattr(callbacks, "_MOST_SECONDS_TO_FINISH_A_STEP", 0.0)
    real, count = TrainingEngine.step, []

    def nth(self, rows):
        count.append(len(rows))
        if len(count) == step and not passes:
            signal.raise_signal(signal.SIGTERM)
        elif len(count) == step:
            at_call(patch, TrainingEngine, "_forward_backward", passes, signal.SIGTERM)
        return real(self, rows)

    patch.setattr(TrainingEngine, "step", nth)


# 3 steps an epoch (four, four and one row), saved at every second one
@pytest.mark.parametrize(("step", "passes", "saved"), [(2, 2, 1), (3, 0, 2), (4, 1, 3), (6, 0, 5)])
def test_a_step_that_takes_too_long_is_given_up(tmp_path, train_file, settings, step, passes, saved):
    """In the middle of an epoch, after a saved step, in the first and in the last step of an epoch."""
    settings = deeper(settings, train={**SCORED, "micro_batch_tokens": 16})
    whole, run = tmp_path / "whole", tmp_path / "run"
    TextClassifier(config=settings).fit(train_file, out=whole)
    with pytest.MonkeyPatch.context() as patch:
        give_up_at(patch, step, passes)
        error = stopped(settings, train_file, run)
    assert error.exit_code == 143
    assert f"saved at step {saved}. Go on with" in str(error)
    assert finish(settings, train_file, run) == course(whole)


def test_with_the_random_numbers_of_the_step_itself_it_would_go_on_otherwise(tmp_path, train_file, settings):
    """Negative control: the first step of an epoch, whose order was drawn after the last one."""
    from fenlei.training.resume import ResumableTrainer

    settings = deeper(settings, train={**SCORED, "micro_batch_tokens": 16})
    whole, run = tmp_path / "whole", tmp_path / "run"
    TextClassifier(config=settings).fit(train_file, out=whole)
    save = ResumableTrainer._save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ResumableTrainer, "_save_checkpoint", lambda self, *a: (setattr(self, "_in_step", False), save(self, *a))
        )
        give_up_at(patch, 4, 1)
        stopped(settings, train_file, run)
    assert finish(settings, train_file, run) != course(whole)


def test_the_very_first_step_given_up_leaves_nothing_to_resume(tmp_path, train_file, settings):
    with pytest.MonkeyPatch.context() as patch:
        give_up_at(patch, 1, 1)
        error = stopped(deeper(settings, train={**SCORED, "micro_batch_tokens": 16}), train_file, tmp_path / "run")
    assert (error.exit_code, str(error)) == (143, "interrupted before the first checkpoint: nothing to resume")


def test_training_in_another_thread_takes_no_signal_away(tmp_path, train_file, settings):
    seen = []

    def train():
        TextClassifier(config=settings).fit(train_file, out=tmp_path / "run")
        seen.append([signal.getsignal(number) for number in HANDLERS])

    before = [signal.getsignal(number) for number in HANDLERS]
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]


def test_with_ten_times_the_limit_it_would_end_too_late(tmp_path, train_file, settings, monkeypatch):
    """Negative control, a hundred times as fast: the step is finished, and the grace is over."""
    from fenlei.training.engine import TrainingEngine

    monkeypatch.setattr(callbacks, "_MOST_SECONDS_TO_FINISH_A_STEP", 100 / 100)
    forward, told = TrainingEngine._forward_backward, []

    def slow(self, *rest):
        told.append(time.monotonic())
        time.sleep(3 / 100)
        return forward(self, *rest)

    monkeypatch.setattr(TrainingEngine, "_forward_backward", slow)
    at_call(monkeypatch, TrainingEngine, "_forward_backward", 14, signal.SIGTERM)
    one_pass_a_row = {**SCORED, "batch_size": 12, "micro_batch_size": 1}
    stopped(deeper(settings, data={"dev_fraction": 0.0}, train=one_pass_a_row), train_file, tmp_path / "run")
    assert time.monotonic() - told[13] > GRACE / 100
    assert store_of(tmp_path / "run").latest().step == 2
