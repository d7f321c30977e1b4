"""Compares kinds of adapters, learning rates and other settings: what the defaults are chosen by.

    .venv/bin/python benchmarks/compare_adapters.py --out /tmp/compare --data fudan-news thucnews-titles \
        --methods lora rslora dora pissa full --rates 1e-4 2e-4 4e-4 --seeds 42 43 44
    .venv/bin/python benchmarks/compare_adapters.py --out /tmp/defaults --variant "preset=tutorial train.epochs=2"

A data set is a folder with train.jsonl and test.jsonl; without --data it is the demo's sample of news. Every run is a
`fenlei train` process of its own, one after the other, seed by seed, so that what else the machine does spreads over
all settings. The dev set is split from the training rows by the run's own seed. A learning rate is chosen by dev
macro-F1; the test figures are only reported. rows/s counts all of training, dev scores and checkpoints included.
runs.json grows with every run; started again, runs that are in it are skipped, so a list of settings may be widened.
It may go on on another machine; speed and memory are shown where all runs of a line had the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from fenlei.modeling.machine import processor_name

METHODS = ("lora", "rslora", "dora", "pissa", "full")
FIGURES = (
    "dev_macro_f1",
    "dev_accuracy",
    "test_macro_f1",
    "test_accuracy",
    "test_log_loss",
    "rows_per_second",
    "peak_gb",
)
OF_THE_MACHINE = ("rows_per_second", "peak_gb")
LABELS = {"rows_per_second": "rows per second (scoring and saving included)"}


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {folder.name: subsample(folder, args) for folder in args.data or [Path(str(files("fenlei") / "demo_data"))]}
    if len(sets) < len(args.data or []):
        raise SystemExit("--data: two folders of the same name")
    path = args.out / "runs.json"
    done: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    wanted = [(name, *setting) for setting in settings(args) for name in sets]
    for number, (name, setting, seed) in enumerate(wanted, start=1):
        key = {"data": name, "setting": setting, "seed": seed, "common": common(args)}
        if find(done, key):
            continue
        print(f"{number} of {len(wanted)}: {name}, {setting}, seed {seed}", file=sys.stderr, flush=True)
        done = [run for run in done if not run.items() >= key.items()]  # it failed before
        done.append(key | run_one(sets[name], [*common(args), *shlex.split(setting)], seed, args))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    if failed := [
        f"{run['data']}, {run['setting']}, seed {run['seed']}: {run['failed']}" for run in done if "failed" in run
    ]:
        print("failed:\n" + "\n".join(failed), file=sys.stderr)
    found = [find(done, {"data": n, "setting": s, "seed": seed, "common": common(args)}) for n, s, seed in wanted]
    print(table([run for run in found if run]))


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    add("--out", type=Path, required=True, help="folder for runs.json and, while they go on, the runs")
    add("--data", type=Path, nargs="+", metavar="FOLDER", help="folders with train.jsonl and test.jsonl")
    add("--model", default="qwen2.5-coder-0.5b")
    add("--methods", nargs="*", choices=METHODS, default=["lora"])
    add("--rates", nargs="+", type=float, default=[1e-4, 2e-4, 4e-4], help="learning rates; for full, a tenth of each")
    add("--seeds", nargs="+", type=int, default=[42])
    add(
        "--variant",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="other settings to compare, repeatable",
    )
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="common", help="settings of all runs")
    add("--rows", type=int, help="this many training rows, drawn once for all runs")
    add("--test-rows", type=int, help="this many test rows, drawn once for all runs")
    add("--max-steps", type=int, help="optimizer steps of every run")
    add("--keep", action="store_true", help="keep checkpoints and classifiers (with full, several GB a run)")
    return described


def settings(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Every (setting, seed), the seed changing slowest."""
    variants = []
    for method in args.methods:
        scale = 0.1 if method == "full" else 1.0
        variants += [f"lora.method={method} train.learning_rate={rate * scale:g}" for rate in args.rates]
    for seed in args.seeds:
        yield from ((variant, seed) for variant in [*variants, *args.variant])


def common(args: argparse.Namespace) -> list[str]:
    """Settings of all runs; part of what makes a run the same one again."""
    limit = [f"train.max_steps={args.max_steps}"] if args.max_steps else []
    # rows is no setting of fenlei; it stands for the files that subsample() makes
    return [f"model.spec={args.model}", f"rows={args.rows}/{args.test_rows}", *limit, *args.common]


def find(runs: list[dict[str, Any]], key: dict[str, Any]) -> dict[str, Any] | None:
    """The finished run of a key; one that failed is tried again."""
    return next((run for run in runs if run.items() >= key.items() and "failed" not in run), None)


def subsample(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The data files, or a seeded sample of their rows."""
    chosen = {}
    for part, count in (("train", args.rows), ("test", args.test_rows)):
        source = folder / f"{part}.jsonl"
        if not source.is_file():
            raise SystemExit(f"{source}: missing; a data set is a folder with train.jsonl and test.jsonl")
        chosen[part] = source
        if count:
            rows = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
            chosen[part] = args.out / f"{folder.name}-{part}-{count}.jsonl"
            drawn = random.Random(0).sample(rows, min(count, len(rows)))
            chosen[part].write_text("\n".join(drawn) + "\n", encoding="utf-8")
    return chosen


def run_one(data: dict[str, Path], overrides: list[str], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run; what came of it."""
    out, log = args.out / "run", args.out / "run.log"
    shutil.rmtree(out, ignore_errors=True)  # of a comparison that was interrupted
    command = [
        sys.executable, "-m", "fenlei", "train", "--train", str(data["train"]), "--test", str(data["test"]), "--out",
        str(out), "data.candidates=all", "tracking.trackers=[]", "train.logging_steps=1", f"train.seed={seed}",
        "evaluation.ladder=[]",  # its prompts with examples are longer than any in training and would set the peak
        *(item for item in overrides if not item.startswith("rows=")),
    ]  # fmt: skip
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
    if status:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        return {"failed": lines[-1] if lines else f"exit status {status}"}
    found = figures(out) | {
        "machine": machine(out),
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak_gb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
        "minutes": (time.monotonic() - started) / 60,
    }
    if args.keep:
        os.replace(out, args.out / f"run-{time.strftime('%Y%m%d-%H%M%S')}")
    else:
        shutil.rmtree(out)
    return found


def figures(run: Path) -> dict[str, float]:
    """Scores and speed of a finished run."""
    found: dict[str, float] = {}
    for part in ("dev", "test"):
        scores = json.loads((run / "report" / f"{part}.json").read_text(encoding="utf-8"))
        found |= {f"{part}_{name}": scores[name] for name in ("accuracy", "macro_f1", "log_loss")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n") if line]
    trained = [line for line in lines if line["event"] == "train"]
    return found | {"rows_per_second": trained[-1]["rows_per_second"], "steps": trained[-1]["step"]}


def machine(run: Path) -> str:
    """What a run was computed by: processor, threads and number format decide its speed and its last digits."""
    cost = json.loads((run / "report" / "cost.json").read_text(encoding="utf-8"))
    dtype = json.loads((run / "run.json").read_text(encoding="utf-8"))["model.dtype"]
    return ", ".join(dict.fromkeys((processor_name(), cost["device"], dtype)))


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds and, in brackets, smallest to largest; the best of a method by dev is bold."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["data"], run["setting"]), []).append(run)
    best = best_settings(groups)
    lines = [
        "| data | settings | seeds | " + " | ".join(LABELS.get(n, n.replace("_", " ")) for n in FIGURES) + " |",
        "|---|---|---:|" + "---:|" * len(FIGURES),
    ]
    for (data, setting), members in sorted(groups.items(), key=lambda item: item[0][0]):
        shown = setting.replace("lora.method=", "").replace("train.learning_rate=", "")
        shown = f"**{shown}**" if (data, setting) in best else shown
        alike = len({run.get("machine") for run in members}) == 1
        cells = (
            spread([run[name] for run in members]) if alike or name not in OF_THE_MACHINE else "" for name in FIGURES
        )
        lines.append(f"| {data} | {shown} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_settings(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> set[tuple[str, str]]:
    """The setting of each data set and method with the best mean dev macro-F1; a tie goes by dev log loss."""
    best: dict[tuple[str, str], tuple[tuple[float, float], str]] = {}
    for (data, setting), members in groups.items():
        method = setting.split()[0]
        if not method.startswith("lora.method="):
            continue
        rank = (
            statistics.mean(run["dev_macro_f1"] for run in members),
            -statistics.mean(run["dev_log_loss"] for run in members),
        )
        if (data, method) not in best or rank > best[data, method][0]:
            best[data, method] = (rank, setting)
    return {(data, setting) for (data, _), (_, setting) in best.items()}


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
