"""A signal to a real ``fenlei train`` process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from fenlei import TextClassifier
from tests.training.test_signals import GRACE, course, finish, lines, store_of

SLOW_STEPS = """
import time
from fenlei.training.engine import TrainingEngine
step = TrainingEngine.step
def slow(self, rows):
    print("in a step", flush=True)
    time.sleep(600)
    return step(self, rows)
"""
FROM_THE_THIRD = """
count = [0]
def third(self, rows):
    count[0] += 1
    return (slow if count[0] == 3 else step)(self, rows)
TrainingEngine.step = third
"""
STUCK_AT_THE_END = """
from fenlei.tracking import TrackerGroup
def stuck(self, status="completed"):
    print("stuck", flush=True)
    time.sleep(600)
TrackerGroup.finish = stuck
"""


def start(code: str, folder: Path, tiny_folder: Path, *more: str, **how) -> subprocess.Popen:
    train = folder / "train.jsonl"
    command = [
        "train", "--train", str(train), "--model", str(tiny_folder), "--out", str(folder / "run"),
        "model.dtype=float32", "model.device=cpu", "prompt.max_length=256", "train.epochs=4000", "train.batch_size=4",
        "tracking.trackers=[]", "train.save_steps=2", "data.dev_fraction=0", *more,
    ]  # fmt: skip
    main = f"import sys\nsys.argv = ['fenlei', *{command!r}]\n{code}\nfrom fenlei.cli import main\nmain()"
    return subprocess.Popen([sys.executable, "-c", main], cwd=folder, text=True, **how)


def wait_for(stream, words: str) -> None:
    for line in stream:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said")


def test_sigterm_to_the_command_then_resume(tmp_path, train_file, tiny_folder):
    """A scheduler's SIGTERM, in a process that ignores SIGHUP as under nohup."""
    process = start(
        "",
        tmp_path,
        tiny_folder,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(process.stderr, "step 10/")
    process.send_signal(signal.SIGHUP)
    wait_for(process.stderr, "step 30/")
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - told < 30
    assert process.returncode == 143, err
    assert "SIGTERM: finishing this step and saving" in err
    assert "Go on with: fenlei train --out" in err
    assert "Traceback" not in err
    run = tmp_path / "run"
    saved = store_of(run).latest().step
    assert saved >= 30
    assert lines(run, "note")[-1]["message"] == "run interrupted"
    command = [sys.executable, "-m", "fenlei", "train", "--out", str(run), "--resume", f"train.max_steps={saved + 2}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"trained {saved + 2} steps" in done.stdout
    assert store_of(run).latest().step == saved + 2


# rows are passes of their own, and from the second step on each takes a tenth of the grace
SLOW_PASSES = """
import time
from fenlei.training.engine import TrainingEngine
forward, passes = TrainingEngine._forward_backward, []
def slow(self, *rest):
    passes.append(rest)
    if len(passes) > 12:
        print("pass", len(passes), flush=True)
        time.sleep(3)
    return forward(self, *rest)
TrainingEngine._forward_backward = slow
"""


def test_a_step_longer_than_schedulers_wait_is_given_up_in_time(tmp_path, train_file, tiny_folder):
    """With the real limit: eleven of the step's twelve passes are to come, 33 seconds."""
    more = ("train.batch_size=12", "train.micro_batch_size=1", "train.max_steps=3", "lora.dropout=0.1")
    process = start(SLOW_PASSES, tmp_path, tiny_folder, *more, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(process.stdout, "pass 14")
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - told < GRACE
    assert process.returncode == 143, err
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert lines(run, "note")[-1]["message"] == "run interrupted"
    assert [c.step for c in store_of(run).list()] == [1], "whole, and of the step before"
    assert store_of(run).damaged() == ()
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    TextClassifier(config=settings).fit(train_file, out=whole)
    assert finish(settings, train_file, run) == course(whole)


def test_a_second_and_a_third_sigterm_do_not_wait(tmp_path, train_file, tiny_folder):
    code = SLOW_STEPS + FROM_THE_THIRD + STUCK_AT_THE_END
    process = start(code, tmp_path, tiny_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(process.stdout, "in a step")
    process.send_signal(signal.SIGTERM)
    wait_for(process.stderr, "SIGTERM: finishing this step")
    assert process.poll() is None, "the step is not finished"
    time.sleep(1.1)  # sooner, it would be the same request
    process.send_signal(signal.SIGTERM)
    wait_for(process.stdout, "stuck")
    assert lines(tmp_path / "run", "note")[-1]["message"] == "run interrupted"
    time.sleep(1.1)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - told < 5
    assert store_of(tmp_path / "run").latest().step == 2


def test_a_closed_terminal(tmp_path, train_file, tiny_folder):
    """The terminal goes away: SIGHUP, and every further write to it fails."""
    ours, theirs = pty.openpty()

    def take_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = start("", tmp_path, tiny_folder, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal)
    os.close(theirs)
    shown = b""
    # on a terminal there is a bar instead of lines
    while b"rows/s" not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    assert process.wait(timeout=60) == 129
    run = tmp_path / "run"
    assert store_of(run).latest() is not None
    assert lines(run, "note")[-1]["message"] == "run interrupted"


def test_a_lost_reader_of_the_log_ends_nothing(tmp_path, train_file, tiny_folder):
    """``fenlei train 2>&1 | head``, or a ``tee`` that died."""
    more = ("train.max_steps=60", "train.logging_steps=1", "evaluation.ladder=[]")
    process = start("", tmp_path, tiny_folder, *more, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(process.stderr, "step 10/")
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    run = tmp_path / "run"
    assert lines(run, "note")[-1]["message"] == "run completed"
    assert lines(run, "train")[-1]["step"] == 60
