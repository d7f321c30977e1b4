"""What several commands say of probabilities and abstention."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def calibration_line(metrics: Mapping[str, Any]) -> str:
    """Before and after calibration, and abstention, in one line."""
    before = metrics.get("uncalibrated", {})
    pairs = [
        f"{words} {before[key]:.4f} to {metrics[key]:.4f}"
        for key, words in (("log_loss", "log loss"), ("brier", "Brier"), ("ece", "ECE"))
        if key in before
    ]
    calibration = metrics.get("calibration", {})
    head = f"calibration ({calibration.get('method', 'none')}): {', '.join(pairs)}; " if pairs else ""
    if calibration.get("threshold") is None:
        return f"{head}every row answered, AURC {metrics['aurc']:.4f}"
    answered = metrics["answered_accuracy"]
    right = f", accuracy of the {metrics['answered']} answers {answered:.4f}" if answered is not None else ""
    return (
        f"{head}abstained from {metrics['abstain_rate']:.1%} ({calibration['signal']} below "
        f"{calibration['threshold']:.4g}){right}, AURC {metrics['aurc']:.4f}"
    )


def more_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The intervals of the main figures, and the figures that the first line does not name."""
    sure = metrics.get("intervals") or {}
    ends = [
        f"{words} {sure[key][0]:.4f} to {sure[key][1]:.4f}"
        for key, words in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"), ("log_loss", "log loss"))
        if sure.get(key)
    ]
    figures = [
        f"{words} {metrics[key]:.4f}"
        for key, words in (
            ("weighted_f1", "weighted F1"),
            ("micro_f1", "micro-F1"),
            ("balanced_accuracy", "balanced accuracy"),
            ("mcc", "MCC"),
            ("average_precision", "mean average precision"),
            ("brier", "Brier"),
        )
        if key in metrics
    ]
    return [*([f"{sure['level']:.0%} intervals: {', '.join(ends)}"] if ends else []), ", ".join(figures)]


def check_out(option: str, path: Path | None, sources: Sequence[str | None] = ()) -> None:
    """Finds out before any work whether a file can be written, and that it is none of the data.

    Args:
        option: what names the file on the command line.
        path: the file; None if it is not wanted.
        sources: files, folders or data set ids that are read.

    Raises:
        DataError: it is a folder, in one that is not there, or one of the data files.
    """
    from fenlei.data.readers import input_files
    from fenlei.errors import DataError

    if path is None:
        return
    if path.is_dir():
        raise DataError(f"{option} {path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise DataError(f"{option} {path}: the folder {path.parent} does not exist")
    real = os.path.realpath(path)
    if any(real == os.path.realpath(file) for source in sources if source for file in input_files(source)):
        raise DataError(f"{option} {path}: is one of the data files; it would be overwritten")


def check_json_out(path: Path | None, sources: Sequence[str | None] = ()) -> None:
    """:func:`check_out` for ``--json``."""
    check_out("--json", path, sources)
