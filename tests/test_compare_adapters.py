"""The benchmark that compares kinds of adapters: it runs, goes on where it was, and chooses by the dev set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parent.parent / "benchmarks" / "compare_adapters.py"
    if not path.is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    spec = importlib.util.spec_from_file_location("compare_adapters", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(tmp_path, train_file, tiny_folder):
    data = tmp_path / "news"
    data.mkdir()
    for part in ("train", "test"):
        (data / f"{part}.jsonl").write_text(train_file.read_text("utf-8"), encoding="utf-8")
    return [
        "--out", str(tmp_path / "out"), "--data", str(data), "--model", str(tiny_folder), "--methods", "lora", "full",
        "--rates", "1e-3", "--test-rows", "4", "--max-steps", "2",
        "--set", "model.dtype=float32", "model.device=cpu", "train.batch_size=4", "data.dev_fraction=0.34",
    ]  # fmt: skip


def run(method, rate, seed, dev, test, **more):
    figures = {"test_accuracy": test, "dev_accuracy": dev, "test_log_loss": 1.0, "rows_per_second": 2.0, "peak_gb": 3.0}
    setting = f"lora.method={method} train.learning_rate={rate}"
    return {
        "data": "d",
        "setting": setting,
        "seed": seed,
        "dev_macro_f1": dev,
        "dev_log_loss": 0.5,
        "test_macro_f1": test,
        **figures,
        **more,
    }


def test_the_table_gives_mean_and_spread_and_chooses_by_dev(bench):
    runs = [run("lora", "1e-4", 1, 0.8, 0.99), run("lora", "2e-4", 1, 0.9, 0.5), run("lora", "2e-4", 2, 0.8, 0.6)]
    lines = bench.table(runs).split("\n")
    assert lines[2].startswith("| d | lora 1e-4 | 1 | 0.800 | 0.800 | 0.990")
    assert lines[3].startswith("| d | **lora 2e-4** | 2 | 0.850 (0.800-0.900)")
    tied = [run("lora", "1e-4", 1, 0.8, 0.9, dev_log_loss=0.1), run("lora", "2e-4", 1, 0.8, 0.9)]
    assert "**lora 1e-4**" in bench.table(tied)


def test_speed_and_memory_of_two_machines_are_not_averaged(bench):
    here, there = run("lora", "1e-4", 1, 0.8, 0.9, machine="a"), run("lora", "1e-4", 2, 0.8, 0.9, machine="b")
    assert bench.table([here, there]).split("\n")[2].endswith("| 1.000 (1.000-1.000) |  |  |")
    assert bench.table([here, here]).split("\n")[2].endswith("| 2.000 (2.000-2.000) | 3.000 (3.000-3.000) |")


def test_full_gets_a_tenth_of_the_rates(bench, command):
    settings = list(bench.settings(bench.parser().parse_args([*command, "--seeds", "1", "2"])))
    names = ["lora.method=lora train.learning_rate=0.001", "lora.method=full train.learning_rate=0.0001"]
    assert settings == [(name, seed) for seed in (1, 2) for name in names]


def test_runs_are_collected_once_and_failures_tried_again(bench, command, tmp_path, monkeypatch, capsys):
    bench.main(command)
    stored = json.loads((tmp_path / "out" / "runs.json").read_text("utf-8"))
    assert ["failed" in r for r in stored] == [False, False]
    assert all(0 <= r["test_macro_f1"] <= 1 and r["rows_per_second"] > 0 and 0.1 < r["peak_gb"] < 100 for r in stored)
    assert [r["steps"] for r in stored] == [2, 2]
    assert all(r["machine"].endswith("float32") for r in stored)
    assert not (tmp_path / "out" / "run").exists(), "checkpoints are not kept"
    table = capsys.readouterr().out
    assert table.count("| news |") == 2

    tried = []
    monkeypatch.setattr(bench, "run_one", lambda data, overrides, seed, args: tried.append(seed) or {"failed": "x"})
    bench.main(command)
    assert not tried
    assert capsys.readouterr().out == table
    for _ in range(2):
        bench.main([*command, "--seeds", "42", "7"])
    assert tried == [7, 7, 7, 7], "failed ones are tried again"
    stored = json.loads((tmp_path / "out" / "runs.json").read_text("utf-8"))
    assert sum("failed" in r for r in stored) == 2
    assert "failed:\nnews, lora.method=lora" in capsys.readouterr().err


def test_why_a_run_failed_is_kept(bench, command):
    args = bench.parser().parse_args(command)
    args.out.mkdir()
    found = bench.run_one(bench.subsample(args.data[0], args), ["lora.method=nothing"], 1, args)
    assert "lora.method" in found["failed"]
