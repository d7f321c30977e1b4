"""A run fits its calibration on dev rows only and saves it; it can be set anew without training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fenlei import TextClassifier
from fenlei.artifact import CARD, MANIFEST, read_artifact, read_json, sha256_of, write_json
from fenlei.errors import ArtifactError, ConfigError, DataError
from fenlei.modeling.calibration import Calibration
from tests.conftest import SENTENCES


def write(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def noisy_rows(endings, every):
    """The sentences with other endings; every so many has a wrong label, so that a tuned model is too sure."""
    names = list(SENTENCES)
    rows = [
        {"text": text + ending, "category": names, "output": label}
        for ending in endings
        for label, texts in SENTENCES.items()
        for text in texts
    ]
    for row in rows[::every]:
        row["output"] = names[(names.index(row["output"]) + 1) % 3]
    return rows


def attainable(metrics):
    """A precision that some threshold with ten or more answers reaches on these rows."""
    risks = [p["risk"] for p in metrics["risk_coverage"] if p["coverage"] * metrics["n"] >= 10]
    return 1 - min(risks) - 0.005


SETTINGS = {
    "prompt": {"max_length": 256},
    "lora": {"r": 8, "alpha": 32},
    "train": {"epochs": 20, "batch_size": 4, "learning_rate": 1e-2, "early_stopping": 0, "oversample": 0.0},
    "tracking": {"trackers": []},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """One run with a noisy dev set, and what was given to the fit."""
    from fenlei.training import report

    folder = tmp_path_factory.mktemp("calibrated")
    train = write(folder / "train.jsonl", noisy_rows([""], 10**9))
    dev = write(folder / "dev.jsonl", noisy_rows(["", "。", "！"], 5))
    test = write(folder / "test.jsonl", noisy_rows(["？"], 4))
    settings = {**SETTINGS, "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"}}
    settings["calibration"] = {"target_coverage": 0.75}
    given = []
    fit = report.fit_calibration
    report.fit_calibration = lambda gold, predictions, s: given.append((gold, predictions)) or fit(gold, predictions, s)
    try:
        classifier = TextClassifier(config=settings).fit(train, dev=dev, test=test, out=folder / "run")
    finally:
        report.fit_calibration = fit
    return classifier, folder, given


def test_only_dev_rows_are_fitted(run):
    _, folder, given = run
    assert len(given) == 1
    gold, predictions = given[0]
    lines = (folder / "dev.jsonl").read_text("utf-8").split("\n")
    assert gold == [json.loads(line)["output"] for line in lines if line]
    assert len(predictions) == 36


def test_saved_and_used(run):
    classifier, folder, _ = run
    content = read_json(folder / "run" / "classifier" / "calibration.json")
    saved = Calibration.from_dict(content)
    assert saved == classifier._ready().calibration
    assert saved.method == "temperature"
    assert saved.temperature > 1.2, "a fifth of the dev labels is wrong, so the model was too sure"
    assert saved.fit["rows"] == 36
    assert saved.fit["after"]["log_loss"] < saved.fit["before"]["log_loss"]
    loaded = TextClassifier.load(folder / "run", overrides=["model.device=cpu"])
    assert loaded._ready().calibration == saved
    texts = ["国足今晚迎战韩国队", "天气"]
    assert loaded.predict_proba(texts) == pytest.approx(classifier.predict_proba(texts), abs=1e-5)


@pytest.mark.parametrize("part", ["dev", "test"])
def test_report(run, part):
    from PIL import Image

    _, folder, _ = run
    report = folder / "run" / "report"
    metrics = read_json(report / f"{part}.json")
    assert {"brier", "ece", "mce", "reliability", "log_loss", "aurc"} <= set(metrics) & set(metrics["uncalibrated"])
    assert metrics["accuracy"] == metrics["uncalibrated"]["accuracy"], "a temperature never changes a label"
    assert metrics["calibration"] == read_json(folder / "run" / "classifier" / "calibration.json")
    assert sum(b["count"] for b in metrics["reliability"]) == metrics["n"]
    for name in ("confusion", "reliability", "risk-coverage"):
        with Image.open(report / f"{name}-{part}.png") as picture:
            assert picture.width > 300
            assert len(picture.convert("L").getcolors(256) or range(999)) > 10, "not an empty picture"


def test_dev_report_is_that_of_the_saved_classifier(run):
    """The dev rows are scored once, before the calibration; scored again with it, they say the same."""
    classifier, folder, _ = run
    metrics = read_json(folder / "run" / "report" / "dev.json")
    again = classifier.evaluate(folder / "dev.jsonl")
    for name in ("accuracy", "log_loss", "brier", "ece", "abstain_rate", "aurc"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-4)
    assert 0 < metrics["abstain_rate"] <= 0.25
    assert metrics["abstain_rate"] == pytest.approx(1 - metrics["calibration"]["fit"]["abstain"]["coverage"])


def test_notes_are_in_the_record(run):
    _, folder, _ = run
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").split("\n") if line]
    notes = [line["message"] for line in lines if line["event"] == "note"]
    assert any(note.startswith("calibration: temperature") for note in notes)
    assert any("target_coverage=0.75" in note for note in notes)


def test_override_at_load(run):
    _, folder, _ = run

    def load(*overrides):
        return TextClassifier.load(folder / "run", overrides=["model.device=cpu", *overrides])

    assert all(p.abstained for p in load("calibration.threshold=2").classify(["国足", "利率"]))
    assert not any(p.abstained for p in load("calibration.threshold=null").classify(["国足", "利率"]))
    with pytest.raises(ConfigError, match="fenlei calibrate"):
        load("calibration.target_precision=0.9")


def test_calibrate_without_training(run, tmp_path):
    classifier, folder, _ = run
    copy = TextClassifier.load(classifier.save(tmp_path / "c"), overrides=["model.device=cpu"])
    before = copy.manifest["files"]
    target = attainable(copy.calibrate(folder / "dev.jsonl", signal="entropy"))
    metrics = copy.calibrate(folder / "dev.jsonl", target_precision=target)
    assert metrics["calibration"]["signal"] == "entropy", "stays as it was"
    assert metrics["answered_accuracy"] >= target
    assert any(f"target_precision={target:g}" in note for note in metrics["notes"])
    copy.save(tmp_path / "c")
    artifact = read_artifact(tmp_path / "c")
    assert Calibration.from_dict(artifact.calibration) == copy._ready().calibration
    changed = {name for name, digest in artifact.manifest["files"].items() if before[name] != digest}
    assert changed == {"calibration.json", CARD}, "figures of another calibration are no longer true"
    for name, digest in artifact.manifest["files"].items():
        assert sha256_of(tmp_path / "c" / name) == digest
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    again = TextClassifier.load(tmp_path / "c", overrides=["model.device=cpu"]).evaluate(folder / "dev.jsonl")
    assert again["answered_accuracy"] == pytest.approx(metrics["answered_accuracy"])
    # from texts and labels, too; a fixed threshold
    texts = [json.loads(line) for line in (folder / "dev.jsonl").read_text("utf-8").split("\n") if line]
    metrics = copy.calibrate([t["text"] for t in texts], [t["output"] for t in texts], threshold=-0.5)
    assert metrics["calibration"]["threshold"] == -0.5


def test_what_cannot_be_met_changes_nothing(run, tmp_path):
    classifier, folder, _ = run
    before = classifier._ready().calibration
    with pytest.raises(DataError, match=r"target_precision=1 cannot be met.*stays as it was"):
        classifier.calibrate(folder / "dev.jsonl", target_precision=1.0)
    with pytest.raises(DataError, match="12 rows are too few"):
        classifier.calibrate(folder / "test.jsonl")
    with pytest.raises(ConfigError, match="exclude each other"):
        classifier.calibrate(folder / "dev.jsonl", target_precision=0.9, target_coverage=0.9)
    with pytest.raises(ConfigError, match="method"):
        classifier.calibrate(folder / "dev.jsonl", method="magic")
    assert classifier._ready().calibration is before


def test_rows_may_bring_their_own_candidates(run):
    from fenlei.data import Example

    classifier, _, _ = run
    examples = [Example("国足", candidates=("体育", "财经")), Example("国足", candidates=("科技",)), Example("国足")]
    two, one, three = classifier.classify(examples)
    assert (len(two.probabilities), len(one.probabilities), len(three.probabilities)) == (2, 1, 3)
    assert one.probability == 1.0
    for p in (two, one, three):
        assert sum(p.probabilities.values()) == pytest.approx(1)


def rewrite(folder, content, name="calibration.json"):
    write_json(folder / name, content)
    manifest = read_json(folder / MANIFEST)
    manifest["files"][name] = sha256_of(folder / name)
    write_json(folder / MANIFEST, manifest)


def test_scores_are_those_that_were_calibrated(run, tmp_path):
    """Scores of whole answers are others than decisive ones, and so would be what T and the threshold mean."""
    classifier, _, _ = run
    folder = classifier.save(tmp_path / "c")
    stored = read_json(folder / "prompt.json")
    assert stored["answers"] == "decisive"
    on_cpu, bare = ["model.device=cpu"], ["calibration.method=none", "calibration.threshold=null"]
    whole = ["inference.answers=complete"]
    with pytest.raises(ConfigError, match="calibrated with inference.answers=decisive"):
        TextClassifier.load(folder, overrides=on_cpu + whole)
    raw = [
        TextClassifier.load(folder, overrides=on_cpu + bare + more).classify(["国足"])[0].scores for more in ([], whole)
    ]
    assert max(raw[1].values()) < max(raw[0].values()), "the end of the answer costs something"

    rewrite(folder, {**stored, "answers": "complete"}, "prompt.json")
    assert TextClassifier.load(folder, overrides=on_cpu + bare).classify(["国足"])[0].scores == raw[1]
    with pytest.raises(ConfigError, match="calibrated with inference.answers=complete"):
        TextClassifier.load(folder, overrides=[*on_cpu, "inference.answers=decisive"])
    del stored["answers"]  # as earlier releases wrote it
    rewrite(folder, stored, "prompt.json")
    assert TextClassifier.load(folder, overrides=on_cpu + bare).classify(["国足"])[0].scores == raw[0]


def test_folders_of_earlier_releases_load(run, tmp_path):
    classifier, _, _ = run
    folder = classifier.save(tmp_path / "old")
    rewrite(folder, {"method": "none", "temperature": 1.0})
    old = TextClassifier.load(folder, overrides=["model.device=cpu"])
    prediction = old.classify(["国足今晚迎战韩国队"])[0]
    scores = np.array(list(prediction.scores.values()))
    plain = np.exp(scores) / np.exp(scores).sum()
    assert list(prediction.probabilities.values()) == pytest.approx(plain, rel=1e-6)
    assert not prediction.abstained
    manifest = (folder / MANIFEST).read_bytes()
    assert old.save(folder) == folder
    assert (folder / MANIFEST).read_bytes() == manifest, "nothing changed, so nothing is written"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"temperature": -1}, "calibration.json: temperature: expected a number above 0"),
        ({"method": "none"}, "calibration.json: expected 'temperature'"),
        ({"temperature": 1, "bias": {"军事": 1.0}}, "'军事' is none of the labels"),
        ({"temperature": 1, "threshold": 7}, "calibration.json: threshold"),
        ({"temperature": 1, "later": 7}, "unknown key 'later'"),
    ],
)
def test_a_calibration_that_cannot_be_is_one_message(run, tmp_path, content, words):
    classifier, _, _ = run
    folder = classifier.save(tmp_path / "wrong")
    rewrite(folder, content)
    with pytest.raises(ArtifactError, match=words):
        TextClassifier.load(folder)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"target_precision": 0.9}, r"target_precision needs 20 dev rows.*there are 0"),
        ({"threshold": 80}, r"calibration\.threshold: expected 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path, train_file, tiny_settings, wanted, words):
    settings = {**tiny_settings, "calibration": wanted}
    with pytest.raises(ConfigError, match=words):
        TextClassifier(config=settings).fit(train_file, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_without_dev_the_model_speaks_for_itself(tmp_path, train_file, tiny_settings):
    settings = {**tiny_settings, "train": {**tiny_settings["train"], "max_steps": 1}}
    classifier = TextClassifier(config=settings).fit(train_file, out=tmp_path / "run")
    assert classifier._ready().calibration == Calibration(signal="label_likelihood")
    notes = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    assert "no dev rows, and calibration.min_rows=20 are needed" in notes
