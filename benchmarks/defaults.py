"""Compares settings on the demo's sample of news: what the default preset was chosen by.

    .venv/bin/python benchmarks/defaults.py --out /tmp/defaults [--repeats 1]

Every variant is a `fenlei train` process of its own on the same rows, seeds in turn; variants are interleaved. Prints a
table with accuracy, macro-F1, log loss (90 test rows), rows/s in training and peak memory, and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

VARIANTS = {
    "default": [],
    "learning rate 1e-4": ["train.learning_rate=1e-4"],
    "learning rate 4e-4": ["train.learning_rate=4e-4"],
    "micro-batch 4": ["train.micro_batch_size=4"],
    "tutorial's values": [
        "preset=tutorial",
        "train.epochs=2",
        "train.gradient_checkpointing=true",
    ],
}


def run_one(name: str, overrides: list[str], seed: int, out: Path, model: str) -> dict:
    sample = files("fenlei") / "demo_data"
    command = [
        sys.executable, "-m", "fenlei", "train", "--train", str(sample / "train.jsonl"),
        "--test", str(sample / "test.jsonl"), "--model", model, "--out", str(out), "data.candidates=all",
        f"train.seed={seed}", "tracking.trackers=[]", *overrides,
    ]  # fmt: skip
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: `{' '.join(command)}` failed")
    test = json.loads((out / "report" / "test.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").split("\n") if line]
    rates = [line["rows_per_second"] for line in lines if line["event"] == "train"]
    return {
        "variant": name,
        "seed": seed,
        "accuracy": test["accuracy"],
        "macro_f1": test["macro_f1"],
        "log_loss": test["log_loss"],
        "rows_per_second": rates[-1],
        "peak_gb": usage.ru_maxrss / 1e6,
        "minutes": (time.monotonic() - started) / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the runs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for repeat in range(args.repeats):
        for number, name in enumerate(args.only):
            rows.append(run_one(name, VARIANTS[name], 42 + repeat, args.out / f"{number}-{repeat}", args.model))
            print(json.dumps(rows[-1]), flush=True)
    (args.out / "defaults.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    keys = ("accuracy", "macro_f1", "log_loss", "rows_per_second", "peak_gb", "minutes")
    print("\n| settings | " + " | ".join(keys) + " |\n|---|" + "---:|" * len(keys))
    for name in args.only:
        medians = (statistics.median(r[k] for r in rows if r["variant"] == name) for k in keys)
        print(f"| {name} | " + " | ".join(f"{m:.3f}" for m in medians) + " |")


if __name__ == "__main__":
    main()
