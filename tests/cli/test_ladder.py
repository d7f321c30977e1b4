"""The ladder at the end of a run and in `fenlei evaluate`, with the tiny model."""

from __future__ import annotations

import json
import sys

import pytest

from fenlei import TextClassifier
from fenlei.cli import main
from fenlei.cli.ladder import training_rows
from tests.conftest import SENTENCES

NAMES = list(SENTENCES)


def write(path, endings):
    rows = [
        {"text": text + ending, "category": NAMES, "output": label}
        for ending in endings
        for label, texts in SENTENCES.items()
        for text in texts
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("ladder")
    train, test = write(folder / "train.jsonl", ["", "。"]), write(folder / "test.jsonl", ["！", "？", "；"])
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "prompt": {"max_length": 256},
        "data": {"dev_fraction": 0.25},
        "train": {"epochs": 20, "batch_size": 4, "learning_rate": 1e-2, "early_stopping": 0, "oversample": 0.0},
        "tracking": {"trackers": []},
        "evaluation": {"bootstrap": 200, "few_shot_tokens": 700},
    }
    classifier = TextClassifier(config=settings).fit(train, test=test, out=folder / "run")
    return classifier, folder


def test_every_rung_is_in_ladder_json(run):
    classifier, folder = run
    ladder = json.loads((folder / "run" / "report" / "ladder.json").read_text("utf-8"))
    assert all(r["accuracy"] is not None for r in ladder["rungs"])
    assert [r["key"] for r in ladder["rungs"]] == ["majority", "tfidf", "zero_shot", "few_shot", "tuned"]
    assert ladder["part"] == "test"
    rungs = {r["key"]: r for r in ladder["rungs"]}
    assert rungs["tuned"]["accuracy"] == classifier.result.test["accuracy"]
    assert rungs["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert rungs["tfidf"]["accuracy"] == 1.0, "the sentences are those of training with another ending"
    assert rungs["zero_shot"]["accuracy"] < 0.8, "weights by chance know nothing"
    assert rungs["few_shot"]["detail"]["examples"] >= 3
    assert ladder["verdict"].startswith("TF-IDF with a linear model is")
    assert json.loads(json.dumps(classifier.result.ladder)) == ladder


def test_probable_label_errors_of_the_dev_rows_are_written(run):
    found = json.loads((run[1] / "run" / "report" / "label_errors.json").read_text("utf-8"))
    assert found["part"] == "dev"
    assert all(row["given"] != row["suggested"] for row in found["rows"])


def test_the_classifier_is_tuned_again_afterwards(run):
    classifier, folder = run
    loaded = TextClassifier.load(folder / "run", overrides=["model.device=cpu"])
    texts = ["国足今晚迎战韩国队", "央行下调利率"]
    assert loaded.predict_proba(texts) == pytest.approx(classifier.predict_proba(texts), abs=1e-5)


def test_evaluate_with_ladder(run, tmp_path, monkeypatch, capfd):
    folder = run[1]
    arguments = ["evaluate", folder / "run", folder / "test.jsonl", "--ladder", "--json", tmp_path / "m.json"]
    monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, arguments), "model.device=cpu", "evaluation.ladder_rows=30"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert not ended.value.code, err
    found = json.loads((tmp_path / "m.json").read_text("utf-8"))
    rows = {r["key"]: r["rows"] for r in found["ladder"]["rungs"]}
    assert rows == {"majority": 36, "tfidf": 36, "zero_shot": 30, "few_shot": 30, "tuned": 36}
    stored = json.loads((folder / "run" / "report" / "ladder.json").read_text("utf-8"))
    again, first = ({r["key"]: r["accuracy"] for r in x["rungs"]} for x in (found["ladder"], stored))
    for key in ("majority", "tfidf", "tuned"):
        assert again[key] == first[key]
    assert "baseline ladder, 36 rows" in out
    assert found["ladder"]["verdict"] in out
    low, high = found["intervals"]["accuracy"]
    assert f"95% intervals: accuracy {low:.4f} to {high:.4f}" in out
    for key, words in (("mcc", "MCC"), ("balanced_accuracy", "balanced accuracy"), ("brier", "Brier")):
        assert f"{words} {found[key]:.4f}" in out


def fails(monkeypatch, capfd, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, arguments), "model.device=cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capfd.readouterr().err


def test_rows_that_were_trained_on_are_no_test(run, monkeypatch, capfd):
    folder = run[1]
    kept = folder / "kept.jsonl"
    learned = {row.text for row in training_rows(folder / "run")[1].train}
    lines = (folder / "train.jsonl").read_text("utf-8").strip().split("\n")
    kept.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["text"] in learned), encoding="utf-8")
    assert "trained on every row" in fails(monkeypatch, capfd, "evaluate", folder / "run", kept, "--ladder")


def test_data_that_changed_since_cannot_tell_what_was_seen(run, monkeypatch, capfd, tmp_path):
    """One label mended, and the same seed splits off other dev rows."""
    folder = run[1]
    path = folder / "train.jsonl"
    before = path.read_text("utf-8")
    rows = [json.loads(line) for line in before.strip().split("\n")]
    rows[0]["output"] = next(name for name in NAMES if name != rows[0]["output"])
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    try:
        for arguments in (
            ("noise", path, "--model", folder / "run", "--out", tmp_path / "n.jsonl"),
            ("evaluate", folder / "run", folder / "test.jsonl", "--ladder"),
        ):
            assert "cannot be told" in fails(monkeypatch, capfd, *arguments)
    finally:
        path.write_text(before, encoding="utf-8")
    assert training_rows(folder / "run")[1].train, "the control"


def test_rows_that_are_measured_choose_nothing(run, monkeypatch, capfd, tmp_path):
    """dev.jsonl was good for choosing TF-IDF's setting, until the ladder is measured on it."""
    from fenlei.cli import ladder as command
    from fenlei.inference import ladder as asked

    folder = run[1]
    dev = training_rows(folder / "run")[1].dev
    rows = tmp_path / "dev.jsonl"
    lines = ({"text": e.text, "category": NAMES, "output": e.label} for e in dev[1:])
    rows.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), encoding="utf-8")
    seen = []
    monkeypatch.setattr(asked, "measure_ladder", lambda _p, _t, data, *_, **__: seen.append(data) or {})
    classifier = run[0]
    command.evaluate_with_ladder(classifier, folder / "run", str(rows), tmp_path / "rejected.jsonl")
    assert [e.text for e in seen[0].dev] == [dev[0].text]
    assert len(seen[0].rows) == len(dev) - 1


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_the_data_are_never_overwritten(run, monkeypatch, capfd, command):
    folder = run[1]
    before = (folder / "test.jsonl").read_bytes()
    arguments = [command, folder / "run", folder / "test.jsonl", "--json", folder / "test.jsonl", "model.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is one of the data files" in capfd.readouterr().err
    assert (folder / "test.jsonl").read_bytes() == before


def test_a_classifier_folder_alone_cannot_tell_its_training_rows(run, monkeypatch, capfd):
    folder = run[1]
    arguments = ["evaluate", folder / "run" / "classifier", folder / "test.jsonl", "--ladder", "model.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "give the run folder" in capfd.readouterr().err
