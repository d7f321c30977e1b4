"""Real trackio and TensorBoard runs, read back with their own libraries."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fenlei.config import RunConfig, TrackingConfig
from fenlei.tracking import TrackerGroup, confusion_matrix_png, start_tracking


def log_a_run(folder: Path, tracker: str) -> TrackerGroup:
    trackers = start_tracking(
        TrackingConfig(trackers=(tracker,)),
        folder,
        hyperparameters=RunConfig().model_dump(mode="json"),
        run_name="新闻 一号",
    )
    for step in range(1, 51):
        trackers.log({"train/loss": 1.0 / step}, step)
    trackers.log({"train/loss": float("nan")}, 51)
    trackers.log({"dev/macro_f1": 0.9}, 50)
    picture = confusion_matrix_png([[3, 1], [0, 0]], ["体育", "政治"], folder / "report" / "c.png")
    trackers.log_image("dev/confusion_matrix", picture, 50, caption="行")
    trackers.log_text("dev/samples", "right 体育\nWRONG ```政治```", 50)
    trackers.finish("interrupted")
    return trackers


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
project = sys.argv[1]
(run,) = SQLiteStorage.get_runs(project)
print(json.dumps([run, SQLiteStorage.get_logs(project, run), SQLiteStorage.get_run_config(project, run)]))
"""


@pytest.mark.usefixtures("patient")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    trackers = log_a_run(tmp_path, "trackio")
    assert trackers.where[0] == f"trackio: TRACKIO_DIR={tmp_path}/trackio trackio show --project fenlei"
    assert "TRACKIO_SPACE_ID is ignored" in trackers.where[1]
    monkeypatch.delenv("TRACKIO_SPACE_ID")
    done = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO, "fenlei"],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run, logs, config = json.loads(done.stdout)
    assert run == "新闻 一号"
    loss = [(e["step"], e["train/loss"]) for e in logs if "train/loss" in e]
    assert loss[:50] == [(s, 1.0 / s) for s in range(1, 51)]
    assert loss[50][0] == 51
    assert math.isnan(float(loss[50][1]))
    assert [e["dev/macro_f1"] for e in logs if "dev/macro_f1" in e] == [0.9]
    assert config["train.learning_rate"] == RunConfig().train.learning_rate
    (text,) = [e["dev/samples"] for e in logs if "dev/samples" in e]
    assert "right 体育\nWRONG ```政治```" in text["_value"]
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 1


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run" / "tensorboard"
    if elsewhere:
        folder = tmp_path / "events"
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(folder))
    trackers = log_a_run(tmp_path / "run", "tensorboard")
    assert trackers.where == [f"TensorBoard: tensorboard --logdir {folder}"]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    loss = events.Scalars("train/loss")
    assert [e.step for e in loss] == list(range(1, 52))
    assert loss[1].value == 0.5
    assert math.isnan(loss[50].value)
    assert events.Scalars("dev/macro_f1")[0].value == pytest.approx(0.9)
    (image,) = events.Images("dev/confusion_matrix")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    text = events.Tensors("dev/samples/text_summary")[0].tensor_proto.string_val[0].decode("utf-8")
    assert text == "````\nright 体育\nWRONG ```政治```\n````"
    table = events.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode("utf-8")
    assert f"| train.learning_rate | {RunConfig().train.learning_rate} |" in table
    assert events.Tensors("status/text_summary")[0].tensor_proto.string_val[0] == b"interrupted"


def test_all_three_together(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    config = TrackingConfig(trackers=("swanlab", "trackio", "tensorboard"), mode="offline")
    begin = time.monotonic()
    trackers = start_tracking(config, tmp_path, hyperparameters={}, run_name="n")
    trackers.log({"train/loss": 1.0}, 1)
    trackers.finish()
    assert time.monotonic() - begin < 5.0
    titles = [line.split()[0].rstrip(":") for line in trackers.where]
    assert [t for t in dict.fromkeys(titles)] == ["SwanLab", "trackio", "TensorBoard"]
    for process in trackers._processes:
        if process._process is not None and process._process.poll() is None:
            os.kill(process._process.pid, signal.SIGKILL)
