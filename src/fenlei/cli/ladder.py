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
        DataError: there is no row, all were trained on, or the training rows cannot be found.
    """
    from dataclasses import replace

    from fenlei.cli.common import error_console
    from fenlei.errors import DataError
    from fenlei.evaluation import evaluate_predictions
    from fenlei.inference.ladder import LadderData, measure_ladder

    config, data = training_rows(run)
    found = classifier.read(file, rejected_path=rejected)
    if not found.examples:
        raise DataError("nothing to evaluate: no rows")
    rows = [replace(row, label=classifier.labels.canonical(str(row.label))) for row in found.examples]
    asked, learned = {row.text for row in rows}, {row.text for row in data.train}
    seen = sum(row.text in learned for row in rows)
    if seen == len(rows):
        raise DataError(f"{file}: the classifier was trained on every row of it; give rows that it has not seen")
    if seen:
        error_console().print(f"{seen} of {len(rows)} rows were trained on: all figures flatter", style="yellow")
    # rows that the ladder is measured on must not choose TF-IDF's setting
    choosing = [row for row in data.dev if row.text not in asked]
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
        LadderData(data.train, choosing, rows, file),
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
    """The rows that a run was trained on, read again as its config.yaml says and split as then.

    Raises:
        DataError: this is no run folder, or its training data is not in a file that is still there as it was: one
            label that was mended since splits off other dev rows, and rows that were trained on would pass for new.
    """
    import tempfile

    from fenlei.artifact import read_json
    from fenlei.config import RunConfig
    from fenlei.errors import DataError
    from fenlei.training.data import read_training_data, rows_digest

    stored = run / "config.yaml"
    if not stored.is_file():
        raise DataError(f"{run}: give the run folder: its config.yaml says where the training rows are")
    config = RunConfig.load(stored)
    if not config.data.train:
        raise DataError(f"{run}: was trained on rows given in Python, which are not kept for the baselines")
    config = config.with_values({"data": {"test": None}})
    try:
        with tempfile.TemporaryDirectory() as folder:  # bad rows are written down once, in the run folder
            data = read_training_data(config, Path(folder))
    except DataError as error:
        raise DataError(f"{error}\n(read again as {stored} says; a relative path counts from this folder)") from None
    then, now = read_json(run / "run.json").get("training rows"), rows_digest(data.train)
    if then != now:
        raise DataError(
            f"{config.data.train}: is not what {run} was trained on any more ({then}; now {now}), so which rows it has "
            "seen cannot be told. Put the file back as it was and mend labels in a copy, or train again"
        )
    return config, data
