"""The label noise benchmark, with the tiny model: both judges, and going on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import label_noise  # noqa: E402

from tests.evaluation.test_noise import said, texts  # noqa: E402


@pytest.fixture
def arguments(tmp_path):
    lines, right = texts(60)
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    rows = [{"text": t, "output": label} for t, label in zip(lines, right, strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return ["--out", str(tmp_path / "out"), "--root", str(tmp_path / "data"), "--data", "small"], tmp_path / "out"


def test_tfidf_finds_what_was_planted(arguments, capsys):
    options, out = arguments
    label_noise.main(options)
    (row,) = json.loads((out / "label_noise.json").read_text("utf-8"))
    assert row["planted"] == 3
    assert row["recall@2x"] == 1.0
    assert row["average_precision"] > 0.8
    assert "| small | tfidf | 60 | 3 |" in capsys.readouterr().out


def test_tuned_judges_only_the_half_it_has_not_seen(arguments, tiny_folder, monkeypatch):
    options, out = arguments
    more = [f"model.spec={tiny_folder}", "model.dtype=float32", "model.device=cpu", "train.max_steps=2"]
    label_noise.main([*options, "--judges", "tuned", "--set", *more])
    (row,) = json.loads((out / "label_noise.json").read_text("utf-8"))
    assert row["judge"] == "tuned"
    assert row["rows"] == 60
    (runs,) = out.glob("runs-small-*")
    halves = [(runs / f"half-{i}.jsonl").read_text("utf-8").strip().split("\n") for i in (0, 1)]
    assert [len(half) for half in halves] == [30, 30]
    assert not set(halves[0]) & set(halves[1])
    monkeypatch.setattr(label_noise, "one", None)  # would fail if it were called
    label_noise.main([*options, "--judges", "tuned", "--set", *more])


def test_nothing_is_taken_over_from_other_rows_errors_or_settings(arguments, monkeypatch):
    """A classifier that was trained on other halves would judge rows it has seen."""
    options, out = arguments
    folders = []

    def judged(rows, folder, args):
        folders.append(folder)
        return [said(**{row["output"]: 1.0}) for row in rows]

    monkeypatch.setattr(label_noise, "judge_by_model", judged)
    tuned = [*options, "--judges", "tuned"]
    lines = (options[3], "small", "train.jsonl")
    for more in ([], ["--rows", "40"], ["--share", "0.1"], ["--set", "model.spec=other"], ["--seed", "1"]):
        label_noise.main([*tuned, *more])
        label_noise.main([*tuned, *more])  # the same again: kept
    Path(*lines).write_text(Path(*lines).read_text("utf-8").replace("{", "{ ", 1).replace('"text": "', '"text": "!', 1))
    label_noise.main(tuned)  # another text
    assert len(set(folders)) == len(folders) == 6
    assert len(json.loads((out / "label_noise.json").read_text("utf-8"))) == 6


def test_halves_are_fair():
    labels = ["a"] * 30 + ["b"] * 10
    first, second = label_noise.halve(labels, seed=1)
    assert sorted(first + second) == list(range(40))
    assert [sum(labels[i] == "b" for i in half) for half in (first, second)] == [5, 5]
