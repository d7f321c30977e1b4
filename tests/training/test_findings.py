from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from fenlei.config import RunConfig
from fenlei.data import Example
from fenlei.errors import ModelError
from fenlei.evaluation.notes import Note, reason
from fenlei.inference.untuned import untuned
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions
from fenlei.tracking import Record, TrackerGroup
from fenlei.training import findings, report
from fenlei.training.findings import affordable_rows, report_label_errors, report_ladder
from fenlei.training.report import Scored, report_part


@pytest.mark.parametrize(("overrides", "steps", "rows"), [
    ([], 1000, 200),
    ([], 50, 96),  # 4 % of 50 steps of 16 rows, each worth three scorings
    (["train.batch_size=4"], 50, 24),
    (["evaluation.ladder_rows=10"], 50, 10),
    (["evaluation.ladder_rows=null"], 1, None),
])  # fmt: skip
def test_the_untuned_model_is_asked_what_a_short_training_can_bear(overrides, steps, rows):
    assert affordable_rows(RunConfig.build({}, overrides=overrides), steps) == rows


def test_a_model_that_was_tuned_as_a_whole_cannot_be_asked_untuned():
    with (
        pytest.raises(ModelError, match=r"lora\.method=full") as refused,
        untuned(SimpleNamespace(model=object())),
    ):
        pass
    assert reason(refused.value) == Note("no_base_model"), "a page in another language words it too"


@pytest.fixture
def dev():
    examples = [Example(f"text {i}", label="ab"[i % 2], id=str(i)) for i in range(8)]
    scores = [[-0.1, -2.4] if i % 2 == 0 or i == 3 else [-2.4, -0.1] for i in range(8)]
    return Scored(examples, make_predictions([("a", "b")] * 8, scores, [False] * 8, Calibration()), 1.0)


@pytest.fixture
def kept(tmp_path):
    return Record(tmp_path / "metrics.jsonl"), TrackerGroup([])


def test_a_ladder_of_the_run_before_a_resume_does_not_stay(tmp_path, dev, kept):
    (tmp_path / "ladder.json").write_text("{}", encoding="utf-8")
    record, trackers = kept
    config = RunConfig.build({}, overrides=["evaluation.ladder=[]"])
    found = report_ladder(
        config, None, None, dev, Scored([], [], 0.0), steps=1, best_step=1, folder=tmp_path, record=record,
        trackers=trackers, console=Console(),
    )  # fmt: skip
    assert found is None
    assert not (tmp_path / "ladder.json").exists()


def test_what_cannot_be_drawn_or_ranked_costs_no_figures(tmp_path, dev, kept, monkeypatch, caplog):
    def broken(*_, **__):
        raise MemoryError("no room for 12 GB of pixels")

    record, trackers = kept
    monkeypatch.setattr(report, "confusion_matrix_png", broken)
    metrics = report_part("dev", dev, ["a", "b"], Calibration(), tmp_path / "report", 5, record, trackers)
    assert json.loads((tmp_path / "report" / "dev.json").read_text("utf-8"))["accuracy"] == metrics["accuracy"]
    drawn = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert "reliability-dev.png" in drawn
    assert "confusion-dev.png" not in drawn
    notes = [json.loads(line) for line in record.path.read_text("utf-8").strip().split("\n")]
    said = next(note["message"] for note in notes if note["event"] == "note")
    assert said.startswith("confusion-dev.png was not drawn: MemoryError: no room")
    monkeypatch.setattr(findings, "rank_label_errors", broken)
    assert report_label_errors(dev, tmp_path / "report") == 0
    assert "label errors were not looked for" in caplog.text


def test_a_full_disk_is_no_fault_of_a_picture(tmp_path, dev, kept, monkeypatch):
    """Negative control: the run must stop there, or it would end without its files."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    record, trackers = kept
    monkeypatch.setattr(report, "confusion_matrix_png", full)
    with pytest.raises(OSError, match="No space"):
        report_part("dev", dev, ["a", "b"], Calibration(), tmp_path / "report", 5, record, trackers)


class Heard:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.figures: dict[str, float] = {}
        self.pictures: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def log(self, values, step):
        self.figures |= values

    def log_image(self, tag, path, step, caption=""):
        self.pictures[tag] = path.name

    def log_text(self, tag, text, step):
        self.texts[tag] = text


@pytest.mark.parametrize("part", ["dev", "test"])
def test_trackers_hear_every_picture_and_the_final_figures(tmp_path, dev, kept, part):
    many = Scored([*dev.examples] * 5, [*dev.predictions] * 5, 1.0)
    heard = Heard()
    metrics = report_part(part, many, ["a", "b"], Calibration(), tmp_path / "report", 5, kept[0], heard)
    drawn = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert set(heard.pictures.values()) == drawn
    assert {f"precision-recall-{part}.png", f"length-{part}.png", f"confusion-{part}.png"} <= drawn
    final = {"dev": "final_dev", "test": "test"}[part]
    for key in ("accuracy", "ece", "mcc", "brier", "aurc", "balanced_accuracy", "average_precision"):
        assert heard.figures[f"{final}/{key}"] == metrics[key]
    assert not any(name.startswith("dev/") for name in heard.figures), "a point of the curve it is not"
    assert heard.texts[f"{part}/per_class"].startswith("b: precision ")
