"""Charts as SVG files that can be read on a white and on a dark page: middle grey text, no background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# middle grey has a contrast of about 4.5 : 1 against white and against black
_TEXT = "#7a7a7a"
_BAR, _HIGHLIGHT = "#8c9bab", "#2f81f7"
_LINES = ("#2f81f7", "#d9822b", "#3fa75a", "#b65fcf", "#c94f4f")
_INK = {
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.edgecolor": _TEXT,
}


def bars(path: Path, values: Mapping[str, float], *, title: str, unit: str, highlight: Sequence[str] = ()) -> Path:
    """Horizontal bars, one a name, the value written at its end.

    Args:
        path: the SVG file to write.
        values: length of each bar, in the order from top to bottom.
        title: text above.
        unit: what the length counts.
        highlight: names whose bars stand out.
    """
    figure, axes = _figure(8.0, 0.9 + 0.34 * max(1, len(values)))
    places = range(len(values))
    colors = [_HIGHLIGHT if name in highlight else _BAR for name in values]
    drawn = axes.barh(places, list(values.values()), color=colors, height=0.68)
    axes.bar_label(drawn, labels=[f"{value:.3g}" for value in values.values()], padding=4, color=_TEXT)
    axes.set_yticks(places, labels=list(values))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values.values(), default=1.0))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    return _save(figure, path)


def lines(path: Path, series: Mapping[str, Sequence[float]], *, title: str, x: str, y: str) -> Path:
    """Lines over 1, 2, 3, ..."""
    figure, axes = _figure(8.0, 4.2)
    for (name, values), color in zip(series.items(), _LINES, strict=False):
        axes.plot(range(1, len(values) + 1), list(values), label=name, color=color, linewidth=1.4)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left")
    axes.grid(color=_TEXT, alpha=0.2)
    axes.legend(frameon=False, labelcolor=_TEXT)
    return _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_INK):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    import matplotlib

    # text stays text, and the same figures give the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fenlei", "font.family": "sans-serif", **_INK}):
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return path
