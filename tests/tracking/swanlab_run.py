"""A real SwanLab run, and its own page to ask about it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fenlei.config import RunConfig, TrackingConfig
from fenlei.tracking import TrackerGroup, confusion_matrix_png, start_tracking

SAMPLES = "right  体育 (0.981), label 体育: 国足今晚\nWRONG  政治 (0.512), label 经济: <b>上海</b> 证券"


def log_a_run(folder: Path, status: str = "completed", **config: Any) -> TrackerGroup:
    trackers = start_tracking(
        TrackingConfig(**config),
        folder,
        hyperparameters=RunConfig().model_dump(mode="json"),
        run_name="新闻 一号",
        description="a real run",
    )
    for step in range(1, 101):
        trackers.log({"train/loss": 1.0 / step, "train/learning_rate": 1e-4}, step)
    trackers.log({"dev/macro_f1": 0.9, "train/loss": 0.005}, 101)
    trackers.log({"test/final_macro_f1": 0.875}, 50)
    picture = confusion_matrix_png([[3, 1], [0, 0]], ["体育", "政治"], folder / "report" / "c.png")
    trackers.log_image("dev/confusion_matrix", picture, 50)
    trackers.log_text("dev/samples", SAMPLES, 50)
    trackers.finish(status)
    return trackers


def ask(address: str, path: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/api/v1/{path}", timeout=20) as reply:
        body = reply.read()
    return json.loads(body)["data"] if reply.headers["content-type"].startswith("application/json") else body


def values(address: str, tag: str, experiment: int = 1) -> list[dict[str, Any]]:
    return ask(address, f"experiment/{experiment}/tag/{urllib.parse.quote(tag, safe='')}")["list"]


def wait_for(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return found
