"""Does a classifier notice texts of classes that it never saw? Which confidence signal notices them best?

    .venv/bin/python benchmarks/unknown_classes.py --out /tmp/unknown --seeds 42 43 44
    .venv/bin/python benchmarks/unknown_classes.py --out /tmp/unknown --model smollm2-135m --rows 40

For each seed a classifier is trained by `fenlei train` on the four largest classes of fudan-news, then all test rows
are scored with those four as candidates, once with decisive and once with complete answers (`inference.answers`): rows
of the four are known, rows of the other classes unknown. AUROC is the probability that a known row has a higher
confidence than an unknown one (0.5: knows nothing), for each signal with the model's own probabilities and with the
calibrated ones. "unknown abstained" is the share of the unknown rows that a threshold for 90 % coverage, chosen on dev
rows of known classes, abstains from; "known abstained" what it costs. Nothing is chosen on test rows. results.json
grows seed by seed; started again, seeds that are in it with the same options and data are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

COVERAGE = 0.9
ANSWERS = ("decisive", "complete")
FIGURES = ("auroc", "known_abstained", "unknown_abstained", "known_aurc")
HEADS = ("AUROC", "known abstained", "unknown abstained", "AURC of known rows")


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    check(args)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    done: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    shared, wanted = what_is_measured(args), []
    for seed in args.seeds:
        key = shared | {"seed": seed}
        found = next((run for run in done if run.items() >= key.items()), None)
        if found is not None:
            wanted.append(found)
            continue
        print(f"seed {seed}", file=sys.stderr, flush=True)
        wanted.append(key | one_seed(args, seed))
        done.append(wanted[-1])
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    text = table(wanted)
    (args.out / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    add("--out", type=Path, required=True, help="folder for results.json, results.md and, while they go on, the runs")
    add("--data", type=Path, default=Path("../shared/data"), help="folder with fudan-news/train.jsonl and test.jsonl")
    add("--model", default="qwen2.5-coder-0.5b")
    add("--seeds", nargs="+", type=int, default=[42])
    add("--known", type=int, default=4, help="this many classes, the largest ones, are known")
    add("--rows", type=int, default=80, help="training rows of each known class")
    add("--dev-rows", type=int, default=20, help="dev rows of each known class, beside them")
    add("--test-rows", type=int, help="this many test rows; all by default")
    add("--max-length", type=int, default=192)
    add("--epochs", type=float, default=1)
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="more", help="other settings of fenlei train")
    add("--keep", action="store_true", help="keep the run folders")
    return described


def check(args: argparse.Namespace) -> None:
    """Says what would end or spoil a run before anything is trained."""
    from fenlei.config import RunConfig

    for setting in args.more:
        if setting.startswith(("calibration.", "inference.answers")):
            raise SystemExit(f"--set {setting}: it is set here, to each value that is measured; leave it out")
    least = RunConfig.build({}).calibration.min_rows
    if args.known * args.dev_rows < least:
        raise SystemExit(
            f"--known {args.known} --dev-rows {args.dev_rows}: no temperature and no threshold is fitted on fewer than "
            f"{least} dev rows; raise --dev-rows"
        )


def what_is_measured(args: argparse.Namespace) -> dict[str, Any]:
    """All that a seed's figures depend on, but the seed: options, and what is in the data files."""
    data = hashlib.sha256()
    for name in ("train", "test"):
        data.update(hashlib.sha256(data_file(args, name).read_bytes()).digest())
    return {
        "model": args.model,
        "known_classes": args.known,
        "rows": args.rows,
        "dev_rows": args.dev_rows,
        "test_rows": args.test_rows,
        "settings": settings(args),
        "data_sha256": data.hexdigest(),
    }


def settings(args: argparse.Namespace) -> list[str]:
    return [f"prompt.max_length={args.max_length}", f"train.epochs={args.epochs:g}", *args.more]


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains, scores, measures."""
    folder = args.out / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a benchmark that was interrupted
    folder.mkdir()
    known, test = split(args, seed, folder)
    started = time.monotonic()
    command = [
        sys.executable, "-m", "fenlei", "train", "--train", str(folder / "train.jsonl"), "--dev",
        str(folder / "dev.jsonl"), "--model", args.model, "--out", str(folder / "run"), "tracking.trackers=[]",
        f"train.seed={seed}", *settings(args),
    ]  # fmt: skip
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"fenlei train ended with exit code {code}")
    trained = time.monotonic() - started
    dev = read_rows(folder / "dev.jsonl")
    is_known = [row["output"] in known for row in test]
    gold = [row["output"] for row in dev]
    found: dict[str, Any] = {
        "known": sorted(known),
        "known_rows": sum(is_known),
        "unknown_rows": len(test) - sum(is_known),
        "known_accuracy": {},
        "scoring_seconds": {},
        "signals": {},
        "train_minutes": trained / 60,
    }
    for answers in ANSWERS:
        said, seconds = score(folder / "run", args.more, answers, dev, test)
        rows = zip(said["test"], test, is_known, strict=True)
        found["known_accuracy"][answers] = statistics.mean(p.label == row["output"] for p, row, k in rows if k)
        found["scoring_seconds"][answers] = seconds
        for name, figures in measure(
            gold, said["dev"], said["test"], [row["output"] for row in test], is_known
        ).items():
            found["signals"][f"{name}, {answers}"] = figures
    found["minutes"] = (time.monotonic() - started) / 60
    if not args.keep:
        shutil.rmtree(folder)
    return found


def score(
    run: Path, more: list[str], answers: str, dev: list[dict[str, Any]], test: list[dict[str, Any]]
) -> tuple[dict[str, list[Any]], float]:
    """What a run says of the dev and the test rows with such answers; and the seconds that it took."""
    from fenlei import TextClassifier

    machine = [setting for setting in more if setting.startswith(("model.", "inference."))]
    # only scores are asked for; what training has fitted is for its own kind of answers
    bare = ["calibration.method=none", "calibration.threshold=null", f"inference.answers={answers}"]
    classifier = TextClassifier.load(run, overrides=[*machine, *bare])
    started = time.monotonic()
    said = {name: classifier.classify([row["text"] for row in rows]) for name, rows in (("dev", dev), ("test", test))}
    return said, time.monotonic() - started


def split(args: argparse.Namespace, seed: int, folder: Path) -> tuple[set[str], list[dict[str, Any]]]:
    """Writes train.jsonl and dev.jsonl of the known classes; gives those classes and the test rows of all."""
    rows, test = (read_rows(data_file(args, name)) for name in ("train", "test"))
    known = [name for name, _ in Counter(row["output"] for row in rows).most_common(args.known)]
    if len({row["output"] for row in test} - set(known)) == 0:
        raise SystemExit("--known: no class is left to be unknown")
    draw = random.Random(seed)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "dev": []}
    for name in known:
        # without the rows' own candidates: every row is asked about all known classes
        own = [{"text": row["text"], "output": name} for row in rows if row["output"] == name]
        drawn = draw.sample(own, min(len(own), args.rows + args.dev_rows))
        parts["dev"] += drawn[: args.dev_rows]
        parts["train"] += drawn[args.dev_rows :]
    for part, chosen in parts.items():
        draw.shuffle(chosen)
        lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if args.test_rows:
        test = random.Random(0).sample(test, min(args.test_rows, len(test)))
    return set(known), test


def data_file(args: argparse.Namespace, name: str) -> Path:
    path: Path = args.data / "fudan-news" / f"{name}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: missing; say where the data is with --data")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def measure(
    gold: list[str], dev: list[Any], test: list[Any], truth: list[str], is_known: list[bool]
) -> dict[str, dict[str, float]]:
    """Figures of one kind of answers by "signal, probabilities"."""
    from sklearn.metrics import roc_auc_score

    from fenlei.config import RunConfig
    from fenlei.evaluation.calibration import fit_calibration
    from fenlei.evaluation.selective import area_under_risk_coverage
    from fenlei.modeling.calibration import SIGNALS
    from fenlei.modeling.prediction import recalibrate

    found = {}
    for signal in SIGNALS:
        for method in ("none", "temperature"):
            wanted = {"signal": signal, "method": method, "target_coverage": COVERAGE}
            fitted = fit_calibration(gold, dev, RunConfig.build({"calibration": wanted}).calibration)
            said = recalibrate(test, fitted.calibration)
            confidence = [p.confidence for p in said]
            declined = {
                k: [p.abstained for p, known in zip(said, is_known, strict=True) if known is k] for k in (True, False)
            }
            found[f"{signal}, {'model' if method == 'none' else 'calibrated'}"] = {
                "auroc": float(roc_auc_score(is_known, confidence)),
                "known_abstained": statistics.mean(declined[True]),
                "unknown_abstained": statistics.mean(declined[False]),
                # a signal that notices unknown texts must not be worse at its other task, noticing wrong answers
                "known_aurc": area_under_risk_coverage(
                    [c for c, known in zip(confidence, is_known, strict=True) if known],
                    [p.label == t for p, t, known in zip(said, truth, is_known, strict=True) if known],
                ),
                "temperature": fitted.calibration.temperature,
            }
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds and, in brackets, smallest to largest; the best AUROC is bold."""
    if not runs:
        return "no runs"
    names = list(runs[0]["signals"])
    best = max(names, key=lambda name: statistics.mean(run["signals"][name]["auroc"] for run in runs))
    first = runs[0]
    lines = [
        f"{first['model']}, {len(runs)} seeds, {first['rows']} rows of each of {len(first['known'])} classes; "
        f"{first['known_rows']} known and {first['unknown_rows']} unknown test rows",
        "",
    ]
    for answers in ANSWERS:
        accuracy = spread([run["known_accuracy"][answers] for run in runs])
        seconds = statistics.mean(run["scoring_seconds"][answers] for run in runs)
        lines.append(f"- {answers} answers: accuracy on known rows {accuracy}; scoring took {seconds:.0f} s")
    lines += ["", "| signal | probabilities | answers | " + " | ".join(HEADS) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(FIGURES))
    for name in names:
        signal, probabilities, answers = name.split(", ")
        cells = [spread([run["signals"][name][figure] for run in runs]) for figure in FIGURES]
        shown = f"**{signal}**" if name == best else signal
        lines.append(f"| {shown} | {probabilities} | {answers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
