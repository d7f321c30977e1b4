from __future__ import annotations

import csv
import json
import os
import random
import sys

import pytest

from fenlei.cli import main
from fenlei.evaluation.noise import plant_errors
from tests.evaluation.test_noise import NAMES, texts


@pytest.fixture
def fenlei(monkeypatch, capfd):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def noisy(tmp_path):
    lines, right = texts(120)
    given, planted = plant_errors(right, 0.05, seed=2)
    path = tmp_path / "train.jsonl"
    rows = [{"text": t, "category": list(NAMES), "output": g} for t, g in zip(lines, given, strict=True)]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path, planted, right


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_ranking_as_a_file(fenlei, noisy, tmp_path, suffix):
    path, planted, right = noisy
    out = tmp_path / f"noise.{suffix}"
    code, shown, err = fenlei("noise", path, "--out", out)
    assert code == 0, err
    if suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
    else:
        with out.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    assert {int(row["source"].rsplit(":", 1)[1]) - 1 for row in rows} == planted
    assert all(row["suggested"] == right[int(row["source"].rsplit(":", 1)[1]) - 1] for row in rows)
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "6 labels probably wrong" in shown


def test_top(fenlei, noisy, tmp_path):
    code, _, _ = fenlei("noise", noisy[0], "--out", tmp_path / "n.jsonl", "--top", "20", "--folds", "3")
    assert code == 0
    assert len((tmp_path / "n.jsonl").read_text("utf-8").strip().split("\n")) == 20


@pytest.mark.parametrize(("arguments", "words"), [
    (["--out", "x.txt"], ".jsonl or .csv"),
    (["--out", "no/such/x.csv"], "does not exist"),
    (["--out", "x.csv", "--model", "no-run"], "no-run"),
])  # fmt: skip
def test_what_can_be_mended(fenlei, noisy, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = fenlei("noise", noisy[0], *arguments)
    assert code == 2
    assert words in err


def test_the_data_are_never_overwritten(fenlei, noisy, tmp_path):
    path = noisy[0]
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part.jsonl").write_bytes(before)
    rejected = tmp_path / "n.rejected.jsonl"
    rejected.write_bytes(before)
    for data, out in (
        (path, path),
        (path, tmp_path / "folder" / ".." / "train.jsonl"),
        (path, tmp_path / "link.jsonl"),
        (folder, folder / "part.jsonl"),
        (rejected, tmp_path / "n.csv"),
    ):
        code, _, err = fenlei("noise", data, "--out", out)
        assert (code, "is one of the data files" in err) == (2, True), err
    assert path.read_bytes() == (folder / "part.jsonl").read_bytes() == rejected.read_bytes() == before


def test_what_data_hold_reaches_neither_terminal_nor_spreadsheet_as_a_command(fenlei, tmp_path):
    lines, right = texts(60)
    given, _ = plant_errors(right, 0.05, seed=2)
    given = [f"={name}\x1b[31m" for name in given]
    name = os.fsdecode("训练\udcff".encode("utf-8", "surrogateescape") + b".jsonl")
    path = tmp_path / (name if sys.platform == "linux" else "train.jsonl")
    rows = [{"text": f"=1+1|\x1b[2J{t}", "output": g} for t, g in zip(lines, given, strict=True)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    code, shown, err = fenlei("noise", path, "--out", tmp_path / "n.csv", "--folds", "3")
    assert code == 0, err
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    with (tmp_path / "n.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.DictReader(file) for cell in row.values()]
    assert any(cell.startswith("'=1+1") for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)
    assert fenlei("noise", path, "--out", tmp_path / "n.jsonl", "--folds", "3")[0] == 0
    assert json.loads((tmp_path / "n.jsonl").read_text("utf-8").split("\n")[0])["text"].startswith("=1+1")


def test_a_tuned_classifier_judges_rows_it_has_not_seen(fenlei, tiny_folder, tmp_path):
    from fenlei import TextClassifier

    lines, right = texts(24, seed=5)
    rows = [{"text": t, "category": list(NAMES), "output": g} for t, g in zip(lines, right, strict=True)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0},
        "train": {"max_steps": 2, "batch_size": 4},
        "tracking": {"trackers": []},
    }
    TextClassifier(config=settings).fit(train, out=tmp_path / "run")
    both = tmp_path / "both.jsonl"
    more = [{**row, "text": "".join(random.Random(i).sample(row["text"], 8))} for i, row in enumerate(rows)]
    both.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*rows, *more]), encoding="utf-8")
    out = tmp_path / "n.jsonl"
    code, shown, err = fenlei(
        "noise", both, "--model", tmp_path / "run", "--out", out, "--top", "99", "model.device=cpu"
    )
    assert code == 0, err
    assert "24 rows left out" in shown
    assert len(out.read_text("utf-8").strip().split("\n")) == 24
    code, _, err = fenlei("noise", train, "--model", tmp_path / "run", "--out", out, "model.device=cpu")
    assert code == 2
    assert "every row" in err
