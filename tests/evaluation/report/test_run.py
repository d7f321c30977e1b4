"""What a real, tiny run leaves: predictions, report, model card; and the report of an evaluation."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from fenlei.evaluation.report import read_run, report_json
from fenlei.evaluation.report.read import about

EVIL = "<img src=x onerror=alert(1)></script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    from fenlei import TextClassifier
    from tests.conftest import SENTENCES

    folder = tmp_path_factory.mktemp("report")
    data = folder / "train.jsonl"
    rows = [
        {"id": f"{EVIL}{i}", "text": f"{text}{EVIL}", "label": name, "probability": "kept apart", "extra": 1}
        for name, texts in SENTENCES.items()
        for i, text in enumerate(texts)
    ]
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0},
        "prompt": {"max_length": 256},
        "lora": {"r": 4, "alpha": 32},
        "train": {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "oversample": 0.0},
        "tracking": {"trackers": []},
        "report": {"hourly_price": 2.5, "currency": "CNY"},
    }
    TextClassifier(config=settings).fit(str(data), dev=str(data), test=str(data), out=folder / "run")
    return folder / "run"


def test_predictions_are_written_for_dev_and_test(run):
    for part in ("dev", "test"):
        lines = [
            json.loads(line) for line in (run / "predictions" / f"{part}.jsonl").read_text("utf-8").split("\n")[:-1]
        ]
        assert len(lines) == 12
        assert set(lines[0]) == {
            "id", "label", "probability", "probabilities", "confidence", "abstained", "truncated", "text",
            "input_label",
        }  # fmt: skip
        assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)


def test_the_report_shows_what_the_files_say(run):
    data = read_run(run)
    found = json.loads((run / "report" / "report.json").read_text("utf-8"))
    metrics = json.loads((run / "report" / "test.json").read_text("utf-8"))
    assert found == json.loads(json.dumps(report_json(data)))
    assert found["part"] == "test"
    assert found["n"] == metrics["n"] == len(data.rows) == 12
    assert found["headline"]["accuracy"]["value"] == metrics["accuracy"]
    assert sum(r.label == r.predicted for r in data.rows) == round(12 * metrics["accuracy"])
    assert [r["key"] for r in found["ladder"]["rungs"]][:5] == ["majority", "tfidf", "zero_shot", "few_shot", "tuned"]
    assert found["curve"]["train"]
    assert found["curve"]["dev"]
    assert found["cost"]["steps"] == 9
    assert found["cost"]["train_rows"] == 36
    assert found["cost"]["train_tokens"] > 36 * 10
    assert found["config"]["lora"]["r"] == 4
    price = 2.5 / 3600 / metrics["texts_per_second"] * 1e6
    assert found["cost"]["price_per_million"] == pytest.approx(price)
    assert found["cost"]["price_note"].startswith(f"a million texts cost about {price:,.2f} CNY: an estimate for a ")
    assert found["versions"]["torch"]
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "onerror" in page
    assert "<img" not in page


def test_a_ladder_of_other_rows_is_not_shown(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert read_run(copy).rungs
    ladder = json.loads((copy / "report" / "ladder.json").read_text("utf-8"))
    (copy / "report" / "ladder.json").write_text(json.dumps({**ladder, "part": "dev"}), encoding="utf-8")
    assert read_run(copy).rungs == read_run(copy).comparisons == []


def test_the_model_card_is_in_the_manifest_and_renders(run):
    from fenlei.artifact import read_artifact

    card = (run / "classifier" / "README.md").read_text("utf-8")
    assert "README.md" in read_artifact(run).manifest["files"]
    _, head, body = card.split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["pipeline_tag"] == "text-classification"
    assert values["language"] == ["zh"]
    assert values["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert "base_model" not in values, "a folder's path is nobody else's business"
    assert "12 test rows" in body
    assert "| 体育 |" in body


def test_evaluate_writes_a_report(run, tmp_path):
    from typer.testing import CliRunner

    from fenlei.cli import app

    data = run.parent / "train.jsonl"
    command = ["evaluate", str(run), str(data), "model.device=cpu"]
    done = CliRunner().invoke(app, [*command, "--report", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "index.html" in done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert found["part"] == "train.jsonl"
    assert found["n"] == 12
    assert found["curve"]["train"], "of the run that the classifier came from"
    assert found["cost"] is None, "nobody said what this machine costs"
    assert "a million texts" not in done.output
    priced = CliRunner().invoke(
        app, [*command, "--report", str(tmp_path / "priced"), "report.hourly_price=4", "report.currency=USD"]
    )
    assert priced.exit_code == 0, priced.output
    found = json.loads((tmp_path / "priced" / "report.json").read_text("utf-8"))
    assert found["cost"]["price_note"] in " ".join(priced.output.split())
    assert "a machine at 4 USD an hour" in found["cost"]["price_note"]
    refused = CliRunner().invoke(app, ["evaluate", str(run), str(data), "--report", str(tmp_path / "no" / "out")])
    assert "does not exist" in str(refused.exception)


def test_a_card_goes_with_a_copy_and_loses_its_figures_with_other_labels(run, tmp_path):
    from fenlei import TextClassifier

    loaded = TextClassifier.load(run, overrides=["model.device=cpu"])
    kept = (loaded.save(tmp_path / "copy") / "README.md").read_text("utf-8")
    assert "12 test rows" in kept
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "step": 1, "loss": 9.0}\n')
    assert about(tmp_path / "copy")["curve"] == [], "of somebody else"
    assert about(run)["curve"]
    more = (loaded.add_labels(["天气"]).save(tmp_path / "more") / "README.md").read_text("utf-8")
    assert "天气" in more
    assert "was not evaluated" in more
