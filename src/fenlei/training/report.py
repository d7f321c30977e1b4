"""The end of a run: the calibration, and what is written into ``report/``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from fenlei.evaluation.pictures import classes_png, reliability_png, risk_coverage_png
from fenlei.inference.records import json_line, make_record
from fenlei.modeling.calibration import Calibration, check_settings
from fenlei.modeling.prediction import Prediction, recalibrate
from fenlei.tracking import Record, TrackerGroup, confusion_matrix_png
from fenlei.training.callbacks import TRACKED

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")
_SAMPLES_SHOWN = 8
_FILES = {"confusion_matrix": "confusion", "risk_coverage": "risk-coverage"}
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
    if part == "test":  # the dev scores have been drawn on the way
        trackers.log({f"{part}/{k}": scalars[k] for k in TRACKED}, step)
    title = f"{part} set"
    for name, draw, caption in (
        (
            "confusion_matrix",
            partial(confusion_matrix_png, metrics["confusion"], labels),
            "rows right, columns predicted",
        ),
        ("reliability", partial(reliability_png, metrics), "before and after calibration"),
        ("risk_coverage", partial(risk_coverage_png, metrics), "errors among the rows answered"),
        ("classes", partial(classes_png, metrics), "the classes with the lowest F1 first"),
    ):
        file = folder / f"{_FILES.get(name, name)}-{part}.png"
        drawn = unless_it_fails(partial(draw, file, title=title), f"{file.name} was not drawn", record, step)
        if drawn is not None:
            trackers.log_image(f"{part}/{name}", drawn, step, caption=f"{part}: {caption}")
    trackers.log_text(f"{part}/samples", _samples(scored), step)
    return metrics


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
