"""A whole training run in a real local SwanLab: every picture of its report, as SwanLab's own page gives it."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fenlei import TextClassifier
from tests.tracking.swanlab_run import ask, values, wait_for

pytest.importorskip("swanlab")
pytest.importorskip("swanboard")

PICTURES = {
    "ladder/intervals": "ladder.png",
    **{
        f"{part}/{tag}": f"{file}-{part}.png"
        for part in ("dev", "test")
        for tag, file in (
            ("classes", "classes"),
            ("confusion_matrix", "confusion"),
            ("reliability", "reliability"),
            ("risk_coverage", "risk-coverage"),
        )
    },
}


def has(address: str, tag: str) -> bool:
    try:
        return bool(values(address, tag))
    except (KeyError, TypeError, urllib.error.HTTPError):
        return False


def pixels(content: bytes) -> tuple[tuple[int, int], bytes]:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.size, picture.convert("RGB").tobytes()


def test_every_picture_of_the_report_is_in_swanlab(
    tmp_path: Path, train_file: Path, tiny_settings: dict, watch: Callable[[Path], str]
) -> None:
    settings = {
        **tiny_settings,
        "train": {**tiny_settings["train"], "epochs": 2},
        "tracking": {"trackers": ["swanlab"], "mode": "local"},
        "report": {"hourly_price": 2.0},
    }
    run = tmp_path / "run"
    result = TextClassifier(config=settings).fit(train_file, dev=train_file, test=train_file, out=run).result
    assert result is not None
    assert result.trackers[0] == f"SwanLab (local): swanlab watch {run}/swanlog"
    address = watch(run / "swanlog")
    # on a busy machine SwanLab finishes in the background
    wait_for(lambda: has(address, "cost/price_per_million"), seconds=90)
    for tag, file in PICTURES.items():
        # the dev scores on the way may have drawn one before
        image = values(address, tag)[-1]
        query = urllib.parse.urlencode({"tag": tag, "experiment_id": 1})
        shown = ask(address, f"media/{image['data'][-1]}?{query}")
        assert pixels(shown) == pixels((run / "report" / file).read_bytes()), tag
        assert image["index"] == result.best_step
    assert not has(address, "test/no_such_picture"), "the control is one"
    ladder = json.loads((run / "report" / "ladder.json").read_text("utf-8"))
    lines = values(address, "ladder/table")[-1]["data"]
    assert lines[0].startswith("most frequent class: accuracy 0.333 (")
    assert lines[-1] == ladder["verdict"]
    assert any("not measured: the training was so short" in line for line in lines)
    figures = json.loads((run / "report" / "report.json").read_text("utf-8"))
    for name, expected in (
        ("ladder/tfidf_accuracy", next(r["accuracy"] for r in ladder["rungs"] if r["key"] == "tfidf")),
        ("cost/price_per_million", figures["cost"]["price_per_million"]),
    ):
        assert values(address, name)[-1]["data"] == pytest.approx(expected)
