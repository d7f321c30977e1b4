"""Probabilities before and after calibration, and what abstaining does, on the test rows of trained runs.

    .venv/bin/python benchmarks/calibration.py runs/fudan runs/thucnews --out /tmp/calibration

Each run is a folder of `fenlei train` with dev and test rows; they are read again as its config.yaml says. The rows
are scored once. Every method of calibration is then fitted on dev and measured on test; so are thresholds for a
precision and a coverage. The dev rows also chose the run's checkpoint, as they do for everybody.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = ("accuracy", "log_loss", "brier", "ece", "mce", "aurc")
HEADS = ("accuracy", "log loss", "Brier", "ECE", "MCE", "AURC")
METHODS = ("none", "temperature", "bias")


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    runs = named(args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {name: one_run(name, run, args) for name, run in runs.items()}
    (args.out / "calibration.json").write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    text = "\n\n".join([methods_table(found), targets_table(found)])
    (args.out / "calibration.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN")
    add("--out", type=Path, required=True, help="folder for calibration.json, calibration.md and the pictures")
    add("--precision", type=float, nargs="*", default=[0.95, 0.98])
    add("--coverage", type=float, nargs="*", default=[0.9, 0.8])
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="more", help="settings of this machine")
    return described


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by their folders' names; where two have the same, the folders above are part of the names."""
    paths = [run.resolve() for run in runs]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["-".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, runs, strict=True))
    raise SystemExit(f"{', '.join(map(str, runs))}: a run is named twice")


def one_run(name: str, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Scores dev and test rows once; everything else is arithmetic."""
    from fenlei import TextClassifier
    from fenlei.config import RunConfig
    from fenlei.evaluation import evaluate_predictions
    from fenlei.evaluation.calibration import fit_calibration
    from fenlei.evaluation.pictures import reliability_png
    from fenlei.modeling.prediction import recalibrate
    from fenlei.training.data import read_training_data

    config = RunConfig.load(run / "config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        data = read_training_data(config, Path(folder))
    if not data.dev or not data.test:
        raise SystemExit(f"{run}: needs dev and test rows; it has {len(data.dev)} and {len(data.test)}")
    classifier = TextClassifier.load(run, overrides=args.more)
    dev, test = classifier.classify(data.dev), classifier.classify(data.test)
    dev_gold, test_gold = ([str(e.label) for e in rows] for rows in (data.dev, data.test))

    def fitted(**settings: Any) -> tuple[Any, dict[str, Any]]:
        fit = fit_calibration(dev_gold, dev, RunConfig.build({"calibration": settings}).calibration)
        said = recalibrate(test, fit.calibration)
        return fit, evaluate_predictions(test_gold, said, data.labels.names, calibration=fit.calibration)

    methods, targets = {}, []
    for method in METHODS:
        fit, metrics = fitted(method=method)
        fallback = fit.calibration.method if fit.calibration.method != method else None
        methods[method] = {
            **{figure: metrics[figure] for figure in FIGURES},
            "temperature": fit.calibration.temperature,
            "fitted_instead": fallback,
        }
        if method == "temperature":
            reliability_png(metrics, args.out / f"reliability-{name}.png", title=f"{name}, test")
    wanted = [("target_precision", p) for p in args.precision] + [("target_coverage", c) for c in args.coverage]
    for target, value in wanted:
        fit, metrics = fitted(**{target: value})
        targets.append(
            {
                "target": target.removeprefix("target_"),
                "value": value,
                "met": fit.unmet is None,
                "dev": fit.calibration.fit.get("abstain"),
                "coverage": 1 - metrics["abstain_rate"],
                "answered_accuracy": metrics["answered_accuracy"],
            }
        )
    return {"dev_rows": len(data.dev), "test_rows": len(data.test), "methods": methods, "targets": targets}


def methods_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| run | dev rows | test rows | calibration | T | " + " | ".join(HEADS) + " |",
        "|---|---:|---:|---|---:|" + "---:|" * len(HEADS),
    ]
    for run, figures in found.items():
        for method, row in figures["methods"].items():
            shown = f"{method} (too few rows: {row['fitted_instead']})" if row["fitted_instead"] else method
            cells = " | ".join(f"{row[name]:.4f}" for name in FIGURES)
            head = f"| {run} | {figures['dev_rows']} | {figures['test_rows']} | {shown} | {row['temperature']:.2f} |"
            lines.append(f"{head} {cells} |")
    return "\n".join(lines)


def targets_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| run | target on dev | met | dev coverage | dev accuracy answered | test coverage | test accuracy answered |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for run, figures in found.items():
        for row in figures["targets"]:
            dev = row["dev"] or {"coverage": float("nan"), "precision": float("nan")}
            right = "none answered" if row["answered_accuracy"] is None else f"{row['answered_accuracy']:.4f}"
            head = f"| {run} | {row['target']} {row['value']:g} | {'yes' if row['met'] else 'no'}"
            lines.append(f"{head} | {dev['coverage']:.3f} | {dev['precision']:.4f} | {row['coverage']:.3f} | {right} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
