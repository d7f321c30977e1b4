"""Reliability diagram and risk-coverage curve as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.tracking.confusion import save_figure, title_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 120


def reliability_png(metrics: Mapping[str, Any], path: Path, title: str = "") -> Path:
    """Draws accuracy against confidence, before and after calibration side by side.

    Bars on the diagonal mean that of the rows that were given 80 %, 80 % are right. The bars below say how many rows
    a bin holds: a bin of few rows says little.

    Args:
        metrics: from :func:`fenlei.evaluation.evaluate_predictions`; with ``uncalibrated``, both are drawn.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [("calibrated", metrics)]
    if "uncalibrated" in metrics:
        shown.insert(0, ("as the model says", metrics["uncalibrated"]))
    figure = Figure(figsize=(4.2 * len(shown) + 0.4, 5.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False, height_ratios=[4, 1])
    for column, (name, figures) in enumerate(shown):
        _draw_reliability(grid[0, column], grid[1, column], figures)
        head = f"{name}: ECE {figures['ece']:.3f}, log loss {figures['log_loss']:.3f}"
        grid[0, column].set_title(head, fontsize=9)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("rows")
    text, style = title_style(title)
    figure.suptitle(text, fontsize=11, **style)
    return save_figure(figure, Path(path))


def _draw_reliability(axes: Axes, below: Axes, figures: Mapping[str, Any]) -> None:
    for b in figures["reliability"]:
        width = b["high"] - b["low"]
        below.bar(b["low"], b["count"], width, align="edge", color="0.7", edgecolor="white")
        if not b["count"]:
            continue
        axes.bar(b["low"], b["accuracy"], width, align="edge", color="tab:blue", edgecolor="white")
        # the gap between what was said and what is true
        bottom, gap = min(b["accuracy"], b["confidence"]), abs(b["accuracy"] - b["confidence"])
        axes.bar(
            b["low"], gap, width, bottom, align="edge", color="tab:red", alpha=0.35, hatch="//", edgecolor="tab:red"
        )
    axes.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    below.set_xlabel("probability of the predicted label")


def risk_coverage_png(metrics: Mapping[str, Any], path: Path, title: str = "") -> Path:
    """Draws the share of wrong answers against the share of rows that are answered, the surest first.

    Args:
        metrics: from :func:`fenlei.evaluation.evaluate_predictions`.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points: Sequence[Mapping[str, float]] = metrics["risk_coverage"]
    axes.plot([p["coverage"] for p in points], [p["risk"] for p in points], marker=".", color="tab:blue")
    error = 1 - metrics["accuracy"]
    axes.axhline(error, color="0.5", linestyle="--", linewidth=1, label=f"all rows answered: {error:.3f} wrong")
    if metrics["abstain_rate"] > 0 and metrics["answered"]:
        coverage, risk = 1 - metrics["abstain_rate"], 1 - metrics["answered_accuracy"]
        axes.plot(
            [coverage], [risk], "o", color="tab:red", label=f"threshold: {coverage:.1%} answered, {risk:.3f} wrong"
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of rows answered")
    axes.set_ylabel("risk: share of wrong answers")
    axes.legend(loc="upper left", fontsize=8)
    text, style = title_style(f"{title}, AURC {metrics['aurc']:.4f}" if title else f"AURC {metrics['aurc']:.4f}")
    axes.set_title(text, fontsize=11, **style)
    return save_figure(figure, Path(path))
