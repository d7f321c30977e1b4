"""Real SwanLab runs: what is on disk, and what its own page and a browser show of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fenlei.config import RunConfig, TrackingConfig
from fenlei.tracking import start_tracking
from tests.tracking.swanlab_run import SAMPLES, ask, log_a_run, values, wait_for

pytest.importorskip("swanlab")
pytest.importorskip("swanboard")
pytestmark = pytest.mark.usefixtures("patient")


def test_local_run_is_on_its_page(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    run = tmp_path / "runs" / "新闻"
    trackers = log_a_run(run, mode="local", project="新闻分类")
    assert trackers.where[0] == f"SwanLab (local): swanlab watch '{run}/swanlog'"
    assert "'新闻分类' becomes 'fenlei-" in trackers.where[1]
    assert not list((run / "swanlog").glob("*-wal"))  # the data base was closed in order
    address = watch(run / "swanlog")
    experiment = ask(address, "experiment/1")
    assert (experiment["name"], experiment["description"], experiment["status"]) == ("新闻 一号", "a real run", 1)
    assert experiment["config"]["train.learning_rate"]["value"] == RunConfig().train.learning_rate
    loss = values(address, "train/loss")
    assert [(e["index"], e["data"]) for e in loss] == [(s, 1.0 / s) for s in range(1, 101)] + [(101, 0.005)]
    assert values(address, "dev/macro_f1")[0]["data"] == 0.9
    assert values(address, "test/final_macro_f1")[0]["index"] == 50
    text = values(address, "dev/samples")[0]
    assert text["data"] == SAMPLES.split("\n")
    assert [e["caption"] for e in text["more"]] == ["1", "2"]
    image = values(address, "dev/confusion_matrix")[0]
    assert image["more"][0]["caption"] == "dev/confusion_matrix"
    query = urllib.parse.urlencode({"tag": "dev/confusion_matrix", "experiment_id": 1})
    body = ask(address, f"media/{image['data'][0]}?{query}")
    assert body.startswith(b"\x89PNG")


def test_the_page_in_a_browser(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    log_a_run(tmp_path, mode="local")
    script = (
        "import sys, swanlab\n"
        "swanlab.init(project='fenlei', name='direct', log_dir=sys.argv[1], mode='local')\n"
        "swanlab.log({'dev/samples': swanlab.Text('no caption')}, step=1)\n"
        "swanlab.finish()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "swanlog")], check=True, timeout=60)
    address = watch(tmp_path / "swanlog")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,3000",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]

    def page(experiment: int) -> str:
        command = [chromium, *flags, f"{address}/experiment/{experiment}/chart"]
        return subprocess.run(command, capture_output=True, timeout=120, encoding="utf-8").stdout

    ours = page(1)
    for shown in ("新闻 一号", "train/loss", "dev/macro_f1", "<canvas", "dev/confusion_matrix", "国足今晚"):
        assert shown in ours, shown
    assert "&lt;b&gt;上海&lt;/b&gt;" in ours  # a text is no markup
    # why each sample gets a number: the page shows nothing of a text that has no caption
    direct = page(2)
    assert "dev/samples" in direct
    assert "no caption" not in direct


def test_nan_does_not_break_the_local_page(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    trackers = start_tracking(TrackingConfig(mode="local"), tmp_path, hyperparameters={}, run_name="n")
    trackers.log({"train/loss": float("nan"), "train/epoch": 1.0}, 1)
    trackers.log({"train/loss": 2.0}, 2)
    trackers.finish()
    assert [e["data"] for e in values(watch(tmp_path / "swanlog"), "train/loss")] == [2.0]
    assert sum("NaN or infinity left out" in line for line in trackers.where) == 1


def test_without_the_filter_nan_would_break_it(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    script = (
        "import sys, swanlab\n"
        "swanlab.init(project='p', name='n', log_dir=sys.argv[1], mode='local')\n"
        "swanlab.log({'train/loss': float('nan')}, step=1)\n"
        "swanlab.finish()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    address = watch(tmp_path / "log")
    with pytest.raises((KeyError, urllib.error.HTTPError)):
        values(address, "train/loss")


def test_the_end_of_a_run_is_recorded_and_a_resumed_run_is_another_experiment(
    tmp_path: Path, watch: Callable[[Path], str]
) -> None:
    for status in ("failed", "interrupted", "completed"):
        log_a_run(tmp_path, status, mode="local")
    experiments = ask(watch(tmp_path / "swanlog"), "project")["experiments"]
    assert [e["status"] for e in sorted(experiments, key=lambda e: e["id"])] == [-1, -1, 1]
    assert len({e["name"] for e in experiments}) == 3


def test_offline_run_can_be_read_back(tmp_path: Path) -> None:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    trackers = log_a_run(tmp_path, mode="offline")
    (folder,) = (tmp_path / "swanlog").glob("run-*")
    assert trackers.where == [f"SwanLab (offline): swanlab sync {folder}"]
    (file,) = folder.glob("*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    records = [Record.FromString(data) for data in reader]
    losses = [r.scalar for r in records if r.HasField("scalar") and r.scalar.key == "train/loss"]
    assert [(s.step, s.value.number) for s in losses] == [(s, 1.0 / s) for s in range(1, 101)] + [(101, 0.005)]
    assert {r.media.key for r in records if r.HasField("media")} == {"dev/confusion_matrix", "dev/samples"}
    texts = sorted((folder / "media" / "text").rglob("*.txt"))
    assert sorted(p.read_text(encoding="utf-8") for p in texts) == sorted(SAMPLES.split("\n"))
    assert len(list((folder / "media" / "image").rglob("*.png"))) == 1
    assert "train.learning_rate" in (folder / "files" / "config.yaml").read_text(encoding="utf-8")


TRAINING = """
import os, signal, sys, time
from pathlib import Path
run, direct = Path(sys.argv[1]), sys.argv[2] == "direct"
if direct:
    import swanlab
    swanlab.init(project="p", name="n", log_dir=str(run / "swanlog"), mode="local")
    log = lambda step: swanlab.log({"train/loss": 1.0}, step=step)
else:
    from fenlei.config import TrackingConfig
    from fenlei.tracking import start_tracking
    trackers = start_tracking(TrackingConfig(mode="local"), run, hyperparameters={}, run_name="n")
    log = lambda step: trackers.log({"train/loss": 1.0}, step)
    time.sleep(0.5)
for step in range(200):
    log(step)
if not direct:
    time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["worker", "direct"])
def test_sigkill_loses_nothing_because_swanlab_lives_on(tmp_path: Path, how: str) -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING, str(tmp_path), how], timeout=60)
    assert done.returncode == -signal.SIGKILL
    (folder,) = wait_for(lambda: list((tmp_path / "swanlog").glob("run-*")))

    def steps() -> int:
        return sum(len(p.read_text().splitlines()) for p in (folder / "logs").glob("*/*.log"))

    if how == "worker":
        wait_for(lambda: steps() == 200)
    else:  # SwanLab in the training process itself
        time.sleep(2.0)
        assert steps() < 200
