"""``fenlei calibrate``, and what evaluate and predict make of it."""

from __future__ import annotations

import json
import sys

import pytest

from fenlei.artifact import read_artifact, read_json
from fenlei.cli import main
from tests.training.test_calibrated_run import SETTINGS, attainable, noisy_rows, write


@pytest.fixture
def fenlei(monkeypatch, capfd):
    def call(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder):
    from fenlei import TextClassifier

    folder = tmp_path_factory.mktemp("cli-calibrate")
    train = write(folder / "train.jsonl", noisy_rows([""], 10**9))
    write(folder / "dev.jsonl", noisy_rows(["", "。", "！"], 5))
    write(folder / "few.jsonl", noisy_rows([""], 5))
    settings = {
        **SETTINGS,
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0},
    }
    TextClassifier(config=settings).fit(train, out=folder / "run")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may change."""
    import shutil

    return shutil.copytree(trained / "run", tmp_path / "run")


def test_calibrate_then_evaluate_then_predict(fenlei, run, trained, tmp_path):
    dev = trained / "dev.jsonl"
    code, out, err = fenlei("calibrate", run, dev, "model.device=cpu", "--json", tmp_path / "m.json")
    assert code == 0, err
    assert "every row answered" in out
    target = round(attainable(read_json(tmp_path / "m.json")), 2) - 0.01
    code, out, err = fenlei("calibrate", run, dev, "model.device=cpu", "--target-precision", target)
    assert code == 0, err
    assert "calibration: temperature" in out
    assert f"calibration.target_precision={target:g}" in out
    assert "classifier/calibration.json" in out.replace("\n", "")
    content = read_artifact(run).calibration
    assert content["temperature"] > 1.2
    assert content["fit"]["abstain"]["precision"] >= target

    code, out, err = fenlei("evaluate", run, dev, "model.device=cpu", "--json", tmp_path / "m.json")
    assert code == 0, err
    metrics = read_json(tmp_path / "m.json")
    assert metrics["answered_accuracy"] >= target
    assert metrics["abstain_rate"] == pytest.approx(1 - content["fit"]["abstain"]["coverage"])
    line = next(line for line in out.split("\n") if line.startswith("calibration (temperature)"))
    before, after = metrics["uncalibrated"], metrics
    assert f"log loss {before['log_loss']:.4f} to {after['log_loss']:.4f}" in line
    assert f"ECE {before['ece']:.4f} to {after['ece']:.4f}" in line
    if content["threshold"] is not None:
        assert f"abstained from {metrics['abstain_rate']:.1%}" in line

    code, _, err = fenlei("predict", run, dev, "--out", tmp_path / "p.jsonl", "model.device=cpu")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").split("\n") if line]
    assert sum(r["abstained"] for r in rows) / len(rows) == pytest.approx(metrics["abstain_rate"])
    assert all(r["abstained"] == (r["confidence"] < (content["threshold"] or 0)) for r in rows)
    assert all(r["label"] for r in rows), "the best label stands there all the same"


@pytest.mark.parametrize(("threshold", "share"), [("2", 1.0), ("null", 0.0)])
def test_threshold_of_one_call(fenlei, run, trained, tmp_path, threshold, share):
    """Without retraining, and without changing the folder."""
    before = read_artifact(run).calibration
    code, _, err = fenlei(
        "predict", run, trained / "few.jsonl", "--out", tmp_path / "p.jsonl", "model.device=cpu",
        f"calibration.threshold={threshold}",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").split("\n") if line]
    assert sum(r["abstained"] for r in rows) == share * len(rows)
    assert read_artifact(run).calibration == before


def test_coverage_signal_method_and_json(fenlei, run, trained, tmp_path):
    code, out, err = fenlei(
        "calibrate", run / "classifier", trained / "dev.jsonl", "model.device=cpu", "--target-coverage", "0.5",
        "--signal", "entropy", "--method", "none", "--json", tmp_path / "m.json",
    )  # fmt: skip
    assert code == 0, err
    metrics = read_json(tmp_path / "m.json")
    assert metrics["calibration"]["signal"] == "entropy"
    assert metrics["calibration"]["temperature"] == 1.0
    assert metrics["abstain_rate"] <= 0.5
    assert "entropy" in out
    assert read_artifact(run).calibration == metrics["calibration"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "{dev}", "--target-precision", "0.9", "--target-coverage", "0.9"], "exclude each other"),
        (["{run}", "{dev}", "--target-precision", "1.5"], "calibration.target_precision"),
        (["{run}", "{dev}", "--method", "magic"], "calibration.method"),
        (["{run}", "{dev}", "--threshold", "80"], "expected 0 to 1"),
        (["{run}", "{dev}", "--target-precision", "1.0"], "cannot be met"),
        (["{run}", "{few}"], "12 rows are too few"),
        (["{run}", "absent.jsonl"], "absent.jsonl"),
        (["absent", "{dev}"], "absent: no such run"),
        (["{run}", "{dev}", "--json", "nowhere/m.json"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_message_and_changes_nothing(fenlei, run, trained, arguments, words):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    places = {"run": run, "dev": trained / "dev.jsonl", "few": trained / "few.jsonl"}
    code, out, err = fenlei("calibrate", *[a.format(**places) for a in arguments], "model.device=cpu")
    assert code == 2, (out, err)
    assert words in err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
