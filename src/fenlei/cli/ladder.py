"""The baseline ladder, measured for ``fenlei evaluate --ladder`` and shown as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from fenlei.classifier import TextClassifier
    from fenlei.config import RunConfig
    from fenlei.training.data import TrainingData


def show_ladder(console: Console, ladder: Mapping[str, Any]) -> None:
    """A table of the rungs, what each step brings, and the verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"\nbaseline ladder, {ladder['n']} rows ({ladder['part']})"
    # narrow, so that all figures fit into 80 columns; no figure is ever cut
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("rows", "accuracy (95 %)", "macro-F1 (95 %)", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    steps = [c for c in ladder["comparisons"] if c["metric"] == "accuracy"]
    p_of = {step["second"]: step["p_value"] for step in reversed(steps)}
    measured = [rung for rung in ladder["rungs"] if rung["accuracy"] is not None]
    for rung in measured:
        figures = []
        for key in ("accuracy", "macro_f1"):
            ends = rung[f"{key}_interval"]
            figures.append(f"{rung[key]:.3f}" + (f" ({ends[0]:.3f}-{ends[1]:.3f})" if ends else ""))
        p = p_of.get(rung["key"])
        table.add_row(rung["title"], str(rung["rows"]), *figures, "" if p is None else f"{p:.2g}")
    console.print(table)
    console.print("p: exact McNemar test of the accuracy against the row above", style="dim")
    for rung in ladder["rungs"]:
        if rung not in measured:
            console.print(f"{rung['title']}: not measured: {rung['note']}", soft_wrap=True)
    if ladder["verdict"]:
        console.print(ladder["verdict"], soft_wrap=True)


def evaluate_with_ladder(
    classifier: TextClassifier, run: Path, file: str, rejected: Path, report: Path | None = None
) -> dict[str, Any]:
    """What :meth:`TextClassifier.evaluate` says, and ``ladder``.

    Args:
        classifier: of the run.
        run: its run folder; says where the training rows are.
        file: labelled rows.
        rejected: where bad rows go.
        report: where the report page goes, if it is wanted.

    Raises:
        DataError: there is no row, or the training rows cannot be found.
    """
    from dataclasses import replace

    from fenlei.errors import DataError
    from fenlei.evaluation import evaluate_predictions
    from fenlei.inference.ladder import LadderData, measure_ladder

    config, data = training_rows(run)
    found = classifier.read(file, rejected_path=rejected)
    if not found.examples:
        raise DataError("nothing to evaluate: no rows")
    rows = [replace(row, label=classifier.labels.canonical(str(row.label))) for row in found.examples]
    start = time.monotonic()
    predictions = classifier.classify(rows)
    seconds = time.monotonic() - start
    predictor = classifier.predictor
    metrics = evaluate_predictions(
        [str(row.label) for row in rows],
        predictions,
        classifier.labels.names,
        seconds=seconds,
        calibration=predictor.calibration,
    )
    ladder = measure_ladder(
        predictor,
        predictions,
        LadderData(data.train, data.dev, rows, file),
        classifier.config.evaluation,
        seed=config.train.seed,
        tuned_seconds=seconds,
    )
    if report is not None:
        from fenlei.cli.report import write_evaluation

        gold = [str(row.label) for row in rows]
        shown = {**metrics, "ladder": ladder}
        write_evaluation(run, file, report, rows, gold, predictions, shown, classifier.config.report)
    return {**metrics, "rejected": len(found.rejected), "ladder": ladder}


def training_rows(run: Path) -> tuple[RunConfig, TrainingData]:
    """The rows that a run was trained on, read again as its config.yaml says.

    Raises:
        DataError: this is no run folder, or its training data is not in a file that is still there.
    """
    import tempfile

    from fenlei.config import RunConfig
    from fenlei.errors import DataError
    from fenlei.training.data import read_training_data

    stored = run / "config.yaml"
    if not stored.is_file():
        raise DataError(f"{run}: give the run folder: its config.yaml says where the training rows are")
    config = RunConfig.load(stored)
    if not config.data.train:
        raise DataError(f"{run}: was trained on rows given in Python, which are not kept for the baselines")
    config = config.with_values({"data": {"test": None}})
    with tempfile.TemporaryDirectory() as folder:  # bad rows are written down once, in the run folder
        return config, read_training_data(config, Path(folder))
