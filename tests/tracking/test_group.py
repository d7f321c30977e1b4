from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fenlei.config import RunConfig, TrackingConfig
from fenlei.tracking import Record, TrackerGroup, group, start_tracking
from fenlei.tracking.channel import BoundedQueue, TrackerSettings, decode, encode
from fenlei.tracking.process import TrackerProcess
from fenlei.tracking.worker import Worker
from tests.tracking import tracking_faults

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc and POSIX signals")

Start = Callable[..., TrackerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a tracker of ``tracking_faults``; none outlives its test."""
    started: list[TrackerProcess] = []

    def make(name: str, **options: Any) -> TrackerProcess:
        settings = TrackerSettings(
            run_dir=str(tmp_path), shown_dir="run", project="p", run_name="一号", **options.pop("settings", {})
        )
        log = tmp_path / f"tracking-{name}.log"
        process = TrackerProcess(name, f"tests.tracking.tracking_faults:{name}", settings, log, **options)
        started.append(process)
        return process

    yield make
    for process in started:
        if process._process is not None and process._process.poll() is None:
            process._process.kill()
            process._process.wait()


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def state(process_id: int) -> str:
    """The letter of /proc/PID/stat: R and S run, T is stopped, Z and "" are gone."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def alive(process_id: int) -> bool:
    return state(process_id) not in ("Z", "")


def timed(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


@pytest.mark.usefixtures("patient")
def test_everything_arrives_in_order(start: Start, tmp_path: Path) -> None:
    trackers = TrackerGroup([start("Keeps", settings={"hyperparameters": {"a.b": 1}})])
    trackers.log({"train/loss": 0.5, "train/n": 3, "train/np": np.float32(0.25), "train/text": "x"}, np.int64(1))
    trackers.log({"train/loss": float("nan")}, 2)
    trackers.log_image("dev/confusion", tmp_path / "c.png", 2, caption="行")
    trackers.log_text("dev/samples", "文本\nline", 2)
    trackers.finish("interrupted")
    trackers.finish("completed")
    trackers.log({"late": 1.0}, 3)
    got = calls(tmp_path)
    assert got[0] == ["open", "一号", {"a.b": 1}]
    assert got[1] == ["log", {"train/loss": 0.5, "train/n": 3, "train/np": 0.25}, 1]
    assert got[2][1]["train/loss"] != got[2][1]["train/loss"]
    assert got[3:] == [
        ["image", "dev/confusion", str(tmp_path / "c.png"), 2, "行"],
        ["text", "dev/samples", "文本\nline", 2],
        ["finish", "interrupted"],
    ]
    assert trackers.where == ["Keeps: cat calls.jsonl"]


def test_hanging_trackers_cost_less_than_five_seconds_together(start: Start) -> None:
    names = ("HangsAtStart", "HangsAtLog", "HangsAtFinish", "StopsAtStart")
    processes: list[TrackerProcess] = []
    starting = timed(lambda: processes.extend(start(name) for name in names))
    trackers = TrackerGroup(processes)
    until(lambda: state(processes[3].process_id or 0) == "T")
    direct = threading.Thread(target=tracking_faults.hang, daemon=True)
    direct.start()
    logging_ = timed(lambda: [trackers.log({"train/loss": 1.0}, step) for step in range(500)])
    finishing = timed(trackers.finish)
    assert starting + logging_ < 1.0
    assert starting + logging_ + finishing < 5.0
    lines = "\n".join(trackers.where)
    assert "HangsAtStart: still starting in the background" in lines
    assert "HangsAtLog: still finishing in the background" in lines
    assert "HangsAtFinish: still finishing in the background" in lines
    assert "StopsAtStart failed: it did not answer at the end of training and was killed" in lines
    until(lambda: not alive(processes[3].process_id or 0))
    assert direct.is_alive()  # in the training process the same call would have blocked until now


def test_a_process_left_in_the_background_ends_by_itself(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_FINISH_S", 0.5)
    short = start("HangsAtFinish", settings={"background_s": 2.0})
    patient = start("HangsAtFinish", settings={"background_s": 60.0})
    trackers = TrackerGroup([short, patient])
    until(lambda: "Keeps: cat calls.jsonl" in short.lines and "Keeps: cat calls.jsonl" in patient.lines)
    trackers.finish()
    assert any("at most 2 s" in line for line in trackers.where)
    assert alive(short.process_id or 0)
    until(lambda: not alive(short.process_id or 0), 8.0)
    assert alive(patient.process_id or 0)  # it was the limit that ended the other one
    assert "most recent call first" in short._log_path.read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RaisesAtStart", "RaisesAtStart failed: RuntimeError: no such server"),
        ("CrashesAtLog", "CrashesAtLog failed: its process ended early"),
        ("NoSuchClass", "NoSuchClass failed: AttributeError"),
        ("ReportsBadPackage", "pip install 'fenlei[trackers]'"),
    ],
)
def test_a_tracker_that_crashes_is_a_line(
    start: Start, name: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = TrackerGroup([start(name)])
    trackers.log({"train/loss": 1.0}, 1)
    until(lambda: "failed" in trackers.where[-1])
    assert timed(lambda: [trackers.log({"train/loss": 1.0}, step) for step in range(5000)]) < 1.0
    assert timed(trackers.finish) < 2.0
    assert any(expected in line for line in trackers.where)
    assert "metrics.jsonl" in trackers.where[-1]
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


@pytest.mark.usefixtures("patient")
def test_one_failing_entry_is_reported_once_and_the_rest_goes_on(start: Start, tmp_path: Path) -> None:
    trackers = TrackerGroup([start("RaisesAtLog")])
    for step in range(3):
        trackers.log({"bad": 1.0}, step)
    trackers.log({"good": 1.0}, 3)
    trackers.finish()
    assert [c for c in calls(tmp_path) if c[0] == "log"] == [["log", {"good": 1.0}, 3]]
    assert trackers.where[1:] == ["RaisesAtLog: log: KeyboardInterrupt: stopped by the page"]


@pytest.mark.usefixtures("patient")
def test_no_library_can_ask_for_a_login(start: Start, tmp_path: Path) -> None:
    process = start("AsksForLogin")
    trackers = TrackerGroup([process])
    trackers.log({"a": 1.0}, 1)
    trackers.finish()
    assert [c[0] for c in calls(tmp_path)] == ["open", "refused", "refused", "log", "finish"]
    assert "printed by the library" in process._log_path.read_text()


def test_a_process_that_cannot_be_started(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    trackers = TrackerGroup([start("Keeps")])
    trackers.log({"a": 1.0}, 1)
    trackers.finish()
    assert "Keeps failed: its process cannot be started" in trackers.where[0]


def test_a_full_queue_drops_and_says_so_once(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_FINISH_S", 0.2)
    process = start("StopsAtStart", capacity=10)
    trackers = TrackerGroup([process])
    until(lambda: state(process.process_id or 0) == "T")
    assert timed(lambda: [trackers.log({"train/loss": 1.0}, step) for step in range(20_000)]) < 2.0
    assert len(process._queue._items) <= 10
    assert len([r for r in caplog.records if "does not keep up" in r.message]) == 1
    trackers.finish()
    assert any("entries left out" in line for line in trackers.where)


def test_a_slow_tracker_drops_in_its_own_process(start: Start) -> None:
    process = start("HangsAtLog", capacity=100_000)
    trackers = TrackerGroup([process])
    for step in range(21_000):
        trackers.log({"train/loss": 1.0}, step)
    until(lambda: any("does not keep up" in line for line in trackers.where))
    assert process._dropped == 0


def test_bounded_queue() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    assert [queue.put(i) for i in range(3)] == [True, True, False]
    queue.close(9)
    queue.close(10)
    assert not queue.put(4)
    assert [queue.get() for _ in range(4)] == [0, 1, 9, None]


def test_lines_on_the_pipe() -> None:
    message = {"op": "log", "values": {"体育\u2028": float("inf")}}
    assert encode(message).count(b"\n") == 1
    assert decode(encode(message)) == message
    assert decode(b"[1]\n") is None
    assert decode(b"not json\n") is None


TRAINING = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from fenlei.tracking import Record, TrackerGroup
from fenlei.tracking.channel import TrackerSettings
from fenlei.tracking.process import TrackerProcess
from tests.tracking import tracking_faults
run = Path(sys.argv[1])
settings = TrackerSettings(run_dir=str(run), shown_dir="run", project="p", run_name="n", background_s=3.0)
process = TrackerProcess("Keeps", sys.argv[3], settings, run / "tracking-keeps.log")
trackers, record = TrackerGroup([process]), Record(run / "metrics.jsonl")
try:
    for step in range(50):
        record.write("train", step, loss=1.0)
        trackers.log({"train/loss": 1.0}, step)
    time.sleep(0.5)  # training goes on between two entries
    print(process.process_id, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    trackers.log({"train/last": 1.0}, 50)
    trackers.finish("interrupted")
"""


def training(folder: Path, spec: str) -> tuple[subprocess.Popen[str], int]:
    """A process that logs 50 steps, prints its tracker's process id, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(folder), str(Path(__file__).parents[2]), spec],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_sigkill_of_training_keeps_every_line_and_ends_the_tracker(tmp_path: Path) -> None:
    process, tracker = training(tmp_path, "tests.tracking.tracking_faults:Keeps")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(50))
    until(lambda: not alive(tracker))
    got = calls(tmp_path)
    assert [c[2] for c in got if c[0] == "log"] == list(range(50))
    assert got[-1] == ["finish", "failed"]


def test_training_that_ends_before_its_tracker_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrackerSettings(run_dir=str(tmp_path), shown_dir="run", project="p", run_name="n", background_s=3.0)
    armed: list[float] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: armed.append(seconds))
    messages, told = os.pipe()
    os.write(told, encode({"op": "open", "settings": settings.to_dict()}))
    os.close(told)
    Worker("tests.tracking.tracking_faults:Keeps", messages, os.open(os.devnull, os.O_WRONLY))._read()
    assert armed == [3.0]


def test_sigkill_of_training_ends_a_hanging_tracker_too(tmp_path: Path) -> None:
    process, tracker = training(tmp_path, "tests.tracking.tracking_faults:HangsAtFinish")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert alive(tracker)
    until(lambda: not alive(tracker), 20.0)


def test_ctrl_c_reaches_training_only(tmp_path: Path) -> None:
    process, tracker = training(tmp_path, "tests.tracking.tracking_faults:Keeps")
    until(lambda: (tmp_path / "calls.jsonl").exists())
    os.killpg(process.pid, signal.SIGINT)  # what the terminal does
    assert process.wait(20) == 0
    assert calls(tmp_path)[-2:] == [["log", {"train/last": 1.0}, 50], ["finish", "interrupted"]]
    assert not alive(tracker)


def test_start_tracking_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    trackers = start_tracking(TrackingConfig(), blocked / "run", hyperparameters={}, run_name="n")
    trackers.log({"a": 1.0}, 1)
    trackers.finish()
    assert "trackers failed" in trackers.where[0]


@pytest.mark.parametrize("config", [TrackingConfig(trackers=()), TrackingConfig(mode="disabled")])
def test_no_trackers(tmp_path: Path, config: TrackingConfig) -> None:
    trackers = start_tracking(config, tmp_path, hyperparameters={}, run_name="n")
    trackers.log({"a": 1.0}, 1)
    assert timed(trackers.finish) < 0.1
    assert trackers.where == []
    assert list(tmp_path.glob("tracking-*")) == []


def test_hyperparameters_are_flat() -> None:
    flat = group.flat(RunConfig.build({"data": {"descriptions": {"体育": "ball"}}}).model_dump(mode="json"))
    assert flat["train.learning_rate"] == RunConfig().train.learning_rate
    assert flat["tracking.trackers"] == "swanlab"
    assert flat["data.descriptions.体育"] == "ball"
    assert "data.train" not in flat
    assert all(isinstance(v, (str, int, float, bool)) for v in flat.values())


def test_record_is_independent_of_trackers(start: Start, tmp_path: Path) -> None:
    record, trackers = Record(tmp_path / "metrics.jsonl"), TrackerGroup([start("RaisesAtStart")])
    for step in range(100):
        record.write("train", step)
        trackers.log({"a": 1.0}, step)
    trackers.finish("failed")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100
