"""``fenlei evaluate --report DIR``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fenlei.classifier import TextClassifier
    from fenlei.config_parts import ReportConfig
    from fenlei.data import Example
    from fenlei.evaluation.report import Cost
    from fenlei.modeling.prediction import Prediction


def check_report_out(folder: Path | None) -> None:
    """Finds out before any work whether the report can go there.

    Raises:
        DataError: it is a file, or in a folder that is not there.
    """
    from fenlei.errors import DataError

    if folder is not None and folder.exists() and not folder.is_dir():
        raise DataError(f"--report {folder}: is a file; give a folder")
    if folder is not None and not folder.parent.is_dir():
        raise DataError(f"--report {folder}: the folder {folder.parent} does not exist")


def price_of(metrics: Mapping[str, Any], settings: ReportConfig) -> Cost | None:
    """What predictions cost at the speed of an evaluation; None without a price."""
    from fenlei.evaluation.report import Cost

    if settings.hourly_price is None:
        return None
    return Cost(hourly_price=settings.hourly_price, currency=settings.currency).at_speed_of(metrics)


def evaluate_with_report(
    classifier: TextClassifier, run: Path, file: str, rejected: Path, folder: Path
) -> dict[str, Any]:
    """What :meth:`TextClassifier.evaluate` says; the report of it goes into a folder.

    Args:
        classifier: of the run.
        run: its run folder or classifier folder.
        file: labelled rows.
        rejected: where bad rows go.
        folder: where the report goes.

    Raises:
        DataError: there is no row.
        OSError: the report cannot be written.
    """
    from fenlei.errors import DataError
    from fenlei.evaluation import evaluate_predictions

    found = classifier.read(file, rejected_path=rejected)
    if not found.examples:
        raise DataError("nothing to evaluate: no rows")
    gold = [classifier.labels.canonical(str(row.label)) for row in found.examples]
    start = time.monotonic()
    predictions = classifier.classify(found.examples)
    metrics = evaluate_predictions(
        gold,
        predictions,
        classifier.labels.names,
        seconds=time.monotonic() - start,
        calibration=classifier.predictor.calibration,
    )
    write_evaluation(run, file, folder, found.examples, gold, predictions, metrics, classifier.config.report)
    return {**metrics, "rejected": len(found.rejected)}


def write_evaluation(
    run: Path,
    file: str,
    folder: Path,
    rows: Sequence[Example],
    gold: Sequence[str],
    predictions: Sequence[Prediction],
    metrics: Mapping[str, Any],
    settings: ReportConfig,
) -> Path:
    """Writes the report of an evaluation; with ``ladder`` among its metrics, that too.

    Args:
        run: run folder or classifier folder.
        file: what was evaluated on.
        folder: where the report goes.
        rows: its rows.
        gold: their right labels.
        predictions: what the classifier says of them.
        metrics: the figures.
        settings: the price of the machine.

    Returns:
        The page.
    """
    from fenlei.evaluation.report import ReportData, Row, write_report
    from fenlei.evaluation.report.read import about, parse_ladder

    price = price_of(metrics, settings)
    rungs, comparisons = parse_ladder(metrics.get("ladder") or {})
    shown = {k: v for k, v in metrics.items() if k != "ladder"}
    data = ReportData(
        title=run.resolve().name,
        part=file.replace("\\", "/").rstrip("/").split("/")[-1],
        metrics=shown,
        rows=[Row.of(*row) for row in zip(rows, predictions, gold, strict=True)],
        rungs=rungs,
        comparisons=comparisons,
        cost=price,
        **about(run),
    )
    return write_report(data, folder)
