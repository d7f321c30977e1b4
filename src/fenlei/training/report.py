"""The end of a run: the calibration, and what is written into ``report/``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from fenlei.config_parts import CalibrationConfig
from fenlei.data import Example
from fenlei.data.columns import Columns
from fenlei.durable import is_disk_full, write_bytes, write_json
from fenlei.errors import ConfigError
from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.calibration import fit_calibration
from fenlei.evaluation.pictures import (
    classes_png,
    length_png,
    precision_recall_png,
    reliability_png,
    risk_coverage_png,
)
from fenlei.evaluation.report import Row
from fenlei.evaluation.report.figures import length_bins, truncation_effect
from fenlei.inference.records import json_line, make_record
from fenlei.modeling.calibration import Calibration, check_settings
from fenlei.modeling.prediction import Prediction, recalibrate
from fenlei.tracking import Record, TrackerGroup, confusion_matrix_png
from fenlei.training.callbacks import TRACKED

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")
_SAMPLES_SHOWN = 8
_FINAL = ("micro_f1", "balanced_accuracy", "mcc", "average_precision", "brier", "mce", "aurc", "abstain_rate")
_CLASSES_LISTED = 200
_FEWEST_ROWS = 30  # under which curves of the classes and groups by length are chance
# predictions/<part>.jsonl: the file's own names and other columns are not known here any more
_COLUMNS = Columns(text="text", label="label", candidates=None, id="id")


@dataclass(frozen=True)
class Scored:
    """Labelled rows and what the classifier says of them.

    Attributes:
        examples: the rows, each with its label.
        predictions: one a row.
        seconds: wall time of the predictions.
    """

    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    seconds: float

    @property
    def gold(self) -> list[str]:
        """The right labels."""
        return [str(example.label) for example in self.examples]

    def calibrated(self, calibration: Calibration) -> Scored:
        """The same rows under another calibration."""
        return replace(self, predictions=recalibrate(self.predictions, calibration))


def check_calibration(settings: CalibrationConfig, rows: int) -> None:
    """Finds out before training whether the classifier can be calibrated as the settings want it.

    Args:
        settings: what is wanted.
        rows: number of dev rows.

    Raises:
        ConfigError: a threshold that its signal cannot have, or too few dev rows for a target.
    """
    check_settings(settings)
    for name in ("target_precision", "target_coverage"):
        if getattr(settings, name) is not None and rows < settings.min_rows:
            raise ConfigError(
                f"calibration.{name} needs {settings.min_rows} dev rows (calibration.min_rows), there are {rows}; "
                "give --dev FILE or a larger data.dev_fraction, or set it after training with fenlei calibrate"
            )


def calibrate(dev: Scored, settings: CalibrationConfig, record: Record, step: int, console: Console) -> Calibration:
    """Fits the calibration on the dev rows and says what came of it."""
    fitted = fit_calibration(dev.gold, dev.predictions, settings)
    for line in fitted.notes:
        warning = fitted.unmet is not None and line.startswith(fitted.unmet)
        console.print(line, style="yellow" if warning else None)
        record.write("note", step, message=line)
    return fitted.calibration


def report_part(
    part: str,
    scored: Scored,
    labels: Sequence[str],
    calibration: Calibration,
    folder: Path,
    step: int,
    record: Record,
    trackers: TrackerGroup,
) -> dict[str, Any]:
    """Final metrics of one part: to the record, the trackers and the report folder.

    Args:
        part: ``dev`` or ``test``.
        scored: its rows, calibrated.
        labels: the label set.
        calibration: what they were calibrated by.
        folder: where ``<part>.json`` and the pictures go; the predictions go into ``predictions/`` beside it.
        step: the step whose weights were used.
        record: gets the figures.
        trackers: get figures and pictures.

    Returns:
        The metrics.
    """
    metrics = evaluate_predictions(
        scored.gold, scored.predictions, labels, seconds=scored.seconds, calibration=calibration
    )
    scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{part}.json", metrics)
    write_predictions(scored, folder.parent / "predictions" / f"{part}.jsonl")
    record.write(part, step, final=True, **scalars)
    # dev scores have been drawn on the way, but not those of the weights that are kept, nor calibrated
    final = part if part == "test" else f"final_{part}"
    trackers.log({f"{final}/{k}": scalars[k] for k in (*TRACKED, *_FINAL) if k in scalars}, step)
    for name, caption, draw in _pictures(metrics, scored, labels):
        file = folder / f"{name.replace('_', '-').removesuffix('-matrix')}-{part}.png"
        make = partial(draw, file, title=f"{part} set")
        drawn = unless_it_fails(make, f"{file.name} was not drawn", record, step)
        if drawn is not None:
            trackers.log_image(f"{part}/{name}", drawn, step, caption=f"{part}: {caption}")
    trackers.log_text(f"{part}/per_class", _per_class(metrics), step)
    trackers.log_text(f"{part}/samples", _samples(scored), step)
    return metrics


def _pictures(
    metrics: dict[str, Any], scored: Scored, labels: Sequence[str]
) -> Iterator[tuple[str, str, Callable[..., Path]]]:
    """Name, caption, and what draws it; the same as the charts of the report page."""
    yield (
        "confusion_matrix",
        "rows right, columns predicted",
        partial(confusion_matrix_png, metrics["confusion"], labels),
    )
    yield "reliability", "before and after calibration", partial(reliability_png, metrics)
    yield "risk_coverage", "errors among the rows answered", partial(risk_coverage_png, metrics)
    yield "classes", "the classes with the lowest F1 first", partial(classes_png, metrics)
    if metrics["n"] < _FEWEST_ROWS:
        return
    yield "precision_recall", "each class against all others", partial(precision_recall_png, metrics)
    rows = [Row.of(*row) for row in zip(scored.examples, scored.predictions, scored.gold, strict=True)]
    yield (
        "length",
        "accuracy by the length of the text",
        partial(length_png, length_bins(rows), truncation_effect(rows)),
    )


def _per_class(metrics: dict[str, Any]) -> str:
    """Precision, recall, F1 and rows of each class as text, the lowest F1 first."""
    ordered = sorted(metrics["per_class"].items(), key=lambda item: item[1]["f1"])[:_CLASSES_LISTED]
    figures = "precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}, {support} rows"
    return "\n".join(f"{name}: {figures.format(**row)}" for name, row in ordered)


def unless_it_fails(make: Callable[[], _Made], otherwise: str, record: Record, step: int) -> _Made | None:
    """What ``make`` gives; where it fails, a note and None: the classifier is saved by then, and the run goes on.

    Args:
        make: makes a picture or the like.
        otherwise: what is said if it fails.
        record: gets the note.
        step: where it belongs.

    Raises:
        OSError: the disk is full.
    """
    try:
        return make()
    except Exception as error:
        if is_disk_full(error):
            raise
        message = f"{otherwise}: {type(error).__name__}: {error}"
        _log.warning(message)
        record.write("note", step, message=message)
        return None


def write_predictions(scored: Scored, path: Path) -> None:
    """Writes ``predictions/<part>.jsonl``: what ``fenlei predict`` writes, with ``text`` and ``input_label``.

    Args:
        scored: the rows.
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    lines = [
        json_line(make_record(example, _COLUMNS, prediction, keep=("text", "label")))
        for example, prediction in zip((replace(e, extra={}) for e in scored.examples), scored.predictions, strict=True)
    ]
    write_bytes(path, b"".join(lines))


def _samples(scored: Scored) -> str:
    """A few predictions as text, the wrong ones first."""
    pairs = sorted(
        zip(scored.examples, scored.predictions, strict=True),
        key=lambda p: (p[0].label == p[1].label, p[1].probability),
    )
    lines = [
        f"{'right' if e.label == p.label else 'WRONG'}  {p.label} ({p.probability:.3f}), label {e.label}: {e.text[:80]}"
        for e, p in pairs[:_SAMPLES_SHOWN]
    ]
    return "\n".join(lines)
