"""What several commands say of probabilities and abstention."""

from __future__ import annotations

from collections.abc import Mapping
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


def check_json_out(path: Path | None) -> None:
    """Finds out before any work whether ``--json OUT`` can be written.

    Raises:
        DataError: it is a folder, or in one that is not there.
    """
    from fenlei.errors import DataError

    if path is not None and path.is_dir():
        raise DataError(f"--json {path}: is a folder; give a file name")
    if path is not None and not path.parent.is_dir():
        raise DataError(f"--json {path}: the folder {path.parent} does not exist")
