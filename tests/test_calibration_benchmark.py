"""The calibration benchmark: what is fitted on what, runs of equal names, and a trained run read back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fenlei import TextClassifier
from fenlei.data import Example, LabelSet
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions
from fenlei.training import data as training_data
from fenlei.training.data import TrainingData
from tests.conftest import SENTENCES

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import calibration  # noqa: E402


def examples(right, wrong):
    """Rows whose texts say how sure the model is of a; b is the label of the wrong ones."""
    sure = np.linspace(0.90, 0.99, right + wrong)
    every = (right + wrong) // wrong if wrong else 10**9
    return [Example(f"{p:.6f}", label="b" if i % every == every - 1 else "a") for i, p in enumerate(sure)]


class Made:
    """A classifier that is as sure as a text says; it counts what it is asked."""

    asked = 0

    def classify(self, rows):
        Made.asked += len(rows)
        scores = [np.log((float(row.text), 1 - float(row.text))) for row in rows]
        return make_predictions([("a", "b")] * len(rows), scores, [False] * len(rows), Calibration())


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that gives the figures of a made-up run with such dev and test rows."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}\n", encoding="utf-8")
    monkeypatch.setattr(TextClassifier, "load", lambda *_, **__: Made())

    def one(dev, test, *more):
        made = TrainingData([], dev, test, LabelSet(["a", "b"]))
        monkeypatch.setattr(training_data, "read_training_data", lambda *_: made)
        Made.asked = 0
        calibration.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), *more])
        return json.loads((tmp_path / "out" / "calibration.json").read_text(encoding="utf-8"))["run"]

    return one


def test_methods_are_fitted_on_dev_and_measured_on_test(measured, tmp_path, capsys):
    found = measured(examples(30, 10), examples(45, 15))
    assert Made.asked == 100, "each row is scored once"
    assert (found["dev_rows"], found["test_rows"]) == (40, 60)
    none, temperature = found["methods"]["none"], found["methods"]["temperature"]
    assert none["temperature"] == 1.0
    assert temperature["temperature"] > 1.5, "three quarters are right, and it said 95 %"
    assert temperature["accuracy"] == none["accuracy"] == 0.75
    for figure in ("log_loss", "brier", "ece"):
        assert temperature[figure] < none[figure]
    assert (tmp_path / "out" / "reliability-run.png").stat().st_size > 1000
    assert f"| run | 40 | 60 | none | 1.00 | 0.7500 | {none['log_loss']:.4f} |" in capsys.readouterr().out


def test_test_rows_change_nothing_that_is_fitted(measured):
    """And, the control, dev rows do."""

    def fitted(dev, test):
        found = measured(dev, test, "--precision", "--coverage", "0.8")
        return [m["temperature"] for m in found["methods"].values()], found["targets"][0]["dev"]

    first = fitted(examples(30, 10), examples(45, 15))
    assert fitted(examples(30, 10), examples(30, 30)) == first
    assert fitted(examples(39, 1), examples(45, 15)) != first


def test_targets(measured):
    met, unmet, coverage = measured(
        examples(36, 4), examples(30, 30), "--precision", "0.9", "0.999", "--coverage", "0.5"
    )["targets"]
    assert (met["target"], met["value"], met["met"]) == ("precision", 0.9, True)
    assert met["dev"]["precision"] >= 0.9
    assert met["answered_accuracy"] == pytest.approx(0.5, abs=0.05), "what is reached on test is not what was promised"
    assert (unmet["met"], unmet["coverage"], unmet["answered_accuracy"]) == (False, 0.0, None)
    assert coverage["dev"]["coverage"] == 0.5
    assert coverage["coverage"] == pytest.approx(0.5, abs=0.05)


def test_too_few_rows_for_a_bias_are_said(measured, capsys):
    found = measured(examples(36, 4), examples(45, 15))
    assert found["methods"]["bias"]["fitted_instead"] == "temperature"
    assert "bias (too few rows: temperature)" in capsys.readouterr().out


def test_a_run_without_test_rows_is_refused(measured):
    with pytest.raises(SystemExit, match="needs dev and test rows; it has 40 and 0"):
        measured(examples(30, 10), [])


class TestNames:
    def test_the_folder_alone_where_that_is_enough(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert list(calibration.named([Path("a/x"), Path("b/y/"), Path()])) == ["x", "y", tmp_path.name]

    def test_equal_ones_with_what_is_above_them(self):
        runs = [Path("/r/a/x"), Path("/r/b/x"), Path("/s/b/y")]
        assert calibration.named(runs) == {"a-x": runs[0], "b-x": runs[1], "b-y": runs[2]}

    def test_the_same_one_twice(self):
        with pytest.raises(SystemExit, match="named twice"):
            calibration.named([Path("/r/a"), Path("/r/b/../a")])


def test_trained_runs_of_one_name(tmp_path, tiny_folder):
    """With the folders' names alone, one of the two would be gone."""
    rows = [{"text": t + end, "output": name} for name, ts in SENTENCES.items() for t in ts for end in ("", "。")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "train": {"max_steps": 1},
        "tracking": {"trackers": []},
    }
    TextClassifier(config=settings).fit(file, dev=file, test=file, out=tmp_path / "a" / "x")
    shutil.copytree(tmp_path / "a" / "x", tmp_path / "b" / "x")
    runs = [str(tmp_path / name / "x") for name in "ab"]
    calibration.main([*runs, "--out", str(tmp_path / "out"), "--set", "model.device=cpu"])
    found = json.loads((tmp_path / "out" / "calibration.json").read_text(encoding="utf-8"))
    assert list(found) == ["a-x", "b-x"]
    assert found["a-x"] == found["b-x"]
    assert (found["a-x"]["dev_rows"], found["a-x"]["test_rows"]) == (24, 24)
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"reliability-a-x.png", "reliability-b-x.png"}
