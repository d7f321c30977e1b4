"""Reliability diagram, risk-coverage and precision-recall curves, classes, lengths and baseline ladder as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.tracking.confusion import save_figure, title_style, writable_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 120
_MOST_CLASSES = 60
_BAR_INCH = 0.62
_CURVES = 6


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


def classes_png(metrics: Mapping[str, Any], path: Path, title: str = "") -> Path:
    """Draws precision, recall and F1 of each class, the one with the lowest F1 on top; of many, the lowest 60.

    Args:
        metrics: from :func:`fenlei.evaluation.evaluate_predictions`.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted((row["f1"], label) for label, row in metrics["per_class"].items() if row["support"])
    shown = [label for _, label in ordered[:_MOST_CLASSES]]
    if len(shown) < len(ordered):
        title = f"{title}: the {len(shown)} of {len(ordered)} classes with the lowest F1".removeprefix(": ")
    names, text, fonts, key = writable_names(shown, title)
    height = 1.6 + _BAR_INCH * len(shown) + 0.2 * len(key)
    figure = Figure(figsize=(7.2, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (measure, colour) in enumerate(
        (("precision", "tab:orange"), ("recall", "tab:green"), ("f1", "tab:blue"))
    ):
        values = [metrics["per_class"][label][measure] for label in shown]
        spots = [i + 0.27 * (place - 1) for i in range(len(shown))]
        axes.barh(spots, values, 0.25, color=colour, label="F1" if measure == "f1" else measure)
        if measure == "f1":
            for spot, value in zip(spots, values, strict=True):
                axes.text(value + 0.01, spot, f"{value:.2f}", va="center", fontsize=7)
    style: dict[str, Any] = {"family": fonts, "parse_math": False}
    rows = (metrics["per_class"][label]["support"] for label in shown)
    ticks = [f"{name} ({count})" for name, count in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(shown)), ticks, fontsize=9, **style)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel("in brackets: rows of the class")
    axes.set_title(text, fontsize=11, **style)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    if key:
        figure.supxlabel("\n".join(key), fontsize=8, family="monospace", parse_math=False)
    return save_figure(figure, Path(path))


def ladder_png(ladder: Mapping[str, Any], path: Path, title: str = "") -> Path:
    """Draws accuracy and macro-F1 of each rung of the baseline ladder with their 95 % confidence intervals.

    Args:
        ladder: from :func:`fenlei.evaluation.ladder.build_ladder`; rungs that were not measured are left out.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rungs = [rung for rung in ladder["rungs"] if rung["accuracy"] is not None]
    figure = Figure(figsize=(7.2, 1.6 + _BAR_INCH * len(rungs)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (key, words, colour) in enumerate(
        (("accuracy", "accuracy", "tab:blue"), ("macro_f1", "macro-F1", "tab:gray"))
    ):
        spots = [i + 0.36 * (place - 0.5) for i in range(len(rungs))]
        values = [rung[key] for rung in rungs]
        # without an interval, where the bootstrap has none: no whisker
        ends = [rung[f"{key}_interval"] or (rung[key], rung[key]) for rung in rungs]
        # an interval by bootstrap need not hold the figure itself
        reach = [
            [max(0.0, v - e[0]) for v, e in zip(values, ends, strict=True)],
            [max(0.0, e[1] - v) for v, e in zip(values, ends, strict=True)],
        ]
        axes.barh(
            spots, values, 0.34, xerr=reach, color=colour, alpha=0.75, label=words, capsize=3, error_kw={"linewidth": 1}
        )
        for spot, value, end in zip(spots, values, ends, strict=True):
            axes.text(max(value, end[1]) + 0.015, spot, f"{value:.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rungs)), [f"{rung['title']} ({rung['rows']})" for rung in rungs], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel(f"in brackets: rows; bars: {ladder['level']:.0%} intervals")
    text, style = title_style(title)
    axes.set_title(text, fontsize=11, **style)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return save_figure(figure, Path(path))


def precision_recall_png(metrics: Mapping[str, Any], path: Path, title: str = "") -> Path:
    """Draws precision against recall of the six classes with the lowest average precision, each against all others.

    Args:
        metrics: from :func:`fenlei.evaluation.evaluate_predictions`, with ``precision_recall``.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {label: curve for label, curve in metrics["precision_recall"].items() if curve is not None}
    shown = sorted(found, key=lambda label: found[label]["average_precision"])[:_CURVES]
    if len(shown) < len(found):
        title = f"{title}: the {len(shown)} of {len(found)} classes with the lowest AP".removeprefix(": ")
    names, text, fonts, key = writable_names(shown, title)
    figure = Figure(figsize=(6.2, 4.8 + 0.2 * len(key)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label in zip(names, shown, strict=True):
        curve = found[label]
        # a point's precision holds from the recall before it on: the area is the AP
        axes.step(
            [0.0, *curve["recall"]],
            [curve["precision"][0], *curve["precision"]],
            where="pre",
            label=f"{name} (AP {curve['average_precision']:.3f})",
        )
    style: dict[str, Any] = {"family": fonts, "parse_math": False}
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(text, fontsize=11, **style)
    for line in axes.legend(loc="lower left", fontsize=8).get_texts():
        line.set_fontfamily(fonts)
        line.set_parse_math(False)
    if key:
        figure.supxlabel("\n".join(key), fontsize=8, family="monospace", parse_math=False)
    return save_figure(figure, Path(path))


def length_png(
    bins: Sequence[Mapping[str, Any]], truncation: Mapping[str, Any] | None, path: Path, title: str = ""
) -> Path:
    """Draws accuracy by the length of the text, and of the texts that were shortened beside those read whole.

    Args:
        bins: from :func:`fenlei.evaluation.report.figures.length_bins`.
        truncation: from :func:`fenlei.evaluation.report.figures.truncation_effect`.
        path: the PNG file to write.
        title: text above.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(f"{b['low']}-{b['high']}", b, "tab:blue") for b in bins]
    if truncation is not None and truncation["shortened"]["n"]:
        groups += [(f"all {name}", truncation[name], "tab:orange") for name in ("whole", "shortened")]
    groups = [group for group in groups if group[1]["n"]]
    figure = Figure(figsize=(7.2, 4.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = [group["accuracy"] for _, group, _ in groups]
    reach = [[abs(group["accuracy"] - group["interval"][end]) for _, group, _ in groups] for end in (0, 1)]
    axes.bar(range(len(groups)), values, yerr=reach, color=[colour for *_, colour in groups], alpha=0.75, capsize=3)
    ticks = [f"{name}\n{group['n']} rows" for name, group, _ in groups]
    axes.set_xticks(range(len(groups)), ticks, fontsize=7)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("characters of the text")
    axes.set_ylabel("accuracy (95 % intervals)")
    text, style = title_style(title)
    axes.set_title(text, fontsize=11, **style)
    return save_figure(figure, Path(path))
