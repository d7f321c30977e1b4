"""The confusion matrix as a picture, readable whatever script the labels are in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABEL = 24
_MOST_KEY = 56
_CELL_INCH = 0.45
_DPI = 120
_ZEROS_UP_TO = 20
_MOST_SHOWN = 50  # the picture grows with the square: 500 labels would take 3 GB
_DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
_CJK_FONTS = (
    "Noto Sans CJK",
    "Noto Sans SC",
    "Source Han Sans",
    "WenQuanYi",
    "SimHei",
    "Microsoft YaHei",
    "PingFang",
    "Heiti",
    "Hiragino Sans GB",
    "SimSun",
    "Noto Serif CJK",
    "Droid Sans Fallback",
    "Arial Unicode",
)
_CJK_FILES = re.compile(
    r"(noto(sans|serif)(cjk|sc)|sourcehan|wqy|simhei|msyh|pingfang|heiti|hiragino|simsun|fallback|arialuni)",
    re.I,
)


def confusion_matrix_png(matrix: Any, labels: Sequence[str], path: Path, title: str = "") -> Path:
    """Draws a confusion matrix: rows are true labels, columns predicted ones, counts in the cells.

    The colour is the share of the row, so small classes are seen as well as large ones; the row of an absent
    class is empty. Of more than 50 labels, those with the most errors are drawn. Where no installed font can write
    the labels, they are numbered and a key below gives their code points.

    Args:
        matrix: counts, shape ``(n, n)``.
        labels: the n labels in the order of the rows.
        path: the PNG file to write.
        title: text above.

    Returns:
        ``path``.

    Raises:
        ValueError: the matrix is not square or does not fit the labels.
        OSError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    n = len(labels)
    if n == 0 or counts.shape != (n, n):
        raise ValueError(f"expected a confusion matrix of {n} x {n} for {n} labels, found shape {counts.shape}")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape, dtype=float), where=totals > 0)
    if n > _MOST_SHOWN:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind="stable")[:_MOST_SHOWN])
        counts, shares, labels = counts[np.ix_(kept, kept)], shares[np.ix_(kept, kept)], [labels[i] for i in kept]
        title = f"{title}: the {_MOST_SHOWN} of {n} labels with the most errors".removeprefix(": ")
        n = _MOST_SHOWN
    names, title, fonts, key = writable_names(labels, title)
    side = max(2.5, _CELL_INCH * n)
    widest = max(len(line) for line in names)
    margin = 1.2 + 0.13 * widest
    below = 0.22 * len(key)
    figure = Figure(figsize=(side + margin + 1.2, side + margin + 0.6 + below), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), counts, names, title, fonts, shares)
    if key:
        figure.supxlabel("\n".join(key), fontsize=8, family="monospace", parse_math=False)
    return save_figure(figure, Path(path))


def _draw(axes: Axes, counts: Any, names: list[str], title: str, fonts: list[str], shares: Any) -> None:
    n = len(names)
    picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    text: dict[str, Any] = {"family": fonts, "parse_math": False}  # a label may hold dollar signs
    size = 9 if n <= _ZEROS_UP_TO else 7
    axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size, **text)
    axes.set_yticks(range(n), names, fontsize=size, **text)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    if title:
        axes.set_title(title, fontsize=11, **text)
    for row in range(n):
        for column in range(n):
            count = counts[row, column]
            if count == 0 and n > _ZEROS_UP_TO:
                continue
            digits = len(f"{count:g}")
            axes.text(
                column,
                row,
                f"{count:g}",
                ha="center",
                va="center",
                fontsize=min(size, 26 / max(3, digits)),
                color="white" if shares[row, column] > 0.5 else "black" if count else "0.75",
            )
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("share of the row")


def writable_names(labels: Sequence[str], title: str) -> tuple[list[str], str, list[str], list[str]]:
    """Labels and title as the installed fonts can write them.

    Args:
        labels: the labels, in the order of the picture.
        title: what stands above it.

    Returns:
        Names, title, font families, and a key: where no font can write the labels, the names are numbers and the key
        says which label is which, by code points. Otherwise it is empty.
    """
    names, line = [_tidy(label) for label in labels], _tidy(title, 200)
    fonts = _fonts_for("".join(names) + line)
    if fonts is not None:
        return names, line, list(fonts), []
    key = [f"{i} = {_tidy(_ascii(name), _MOST_KEY)}" for i, name in enumerate(names, 1)]
    return [str(i) for i in range(1, len(names) + 1)], _ascii(line), [_DEFAULT_FONT], key


def title_style(title: str) -> tuple[str, dict[str, Any]]:
    """A title that can be written with the fonts there are, escaped if need be, and the arguments to write it with."""
    line = _tidy(title, 200)
    fonts = _fonts_for(line)
    if fonts is None:
        line, fonts = _ascii(line), (_DEFAULT_FONT,)
    return line, {"family": list(fonts), "parse_math": False}


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG: whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _tidy(text: str, most: int = _MOST_LABEL) -> str:
    """One line without control characters, shortened in the middle."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= most:
        return line
    half = (most - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _fonts_for(text: str) -> tuple[str, ...] | None:
    """Font families that together can write ``text``; None when no installed one can."""
    from matplotlib import font_manager

    needed = frozenset(c for c in text if not c.isspace())
    default = font_manager.findfont(_DEFAULT_FONT)
    missing = needed - _covered(default, needed)
    if not missing:
        return (_DEFAULT_FONT,)
    for family, file in _cjk_candidates():
        if missing <= _covered(file, missing):
            return (family, _DEFAULT_FONT)
    return None


def _cjk_candidates() -> list[tuple[str, str]]:
    """Installed fonts for Chinese as (family, file), the best known first."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = _listed(manager)
    if not known:
        # matplotlib keeps its own list, which does not have fonts that were installed after it was made
        for file in font_manager.findSystemFonts():
            if _CJK_FILES.search(os.path.basename(file)):
                try:
                    manager.addfont(file)
                except (OSError, RuntimeError):
                    continue
        known = _listed(manager)
    return known


def _listed(manager: Any) -> list[tuple[str, str]]:
    found: dict[str, tuple[int, str, str]] = {}
    for rank, family in enumerate(_CJK_FONTS):
        for entry in manager.ttflist:
            if entry.name.startswith(family) and os.path.exists(entry.fname):
                found.setdefault(entry.name, (rank, entry.name, entry.fname))
    return [(name, file) for _, name, file in sorted(found.values())]


@lru_cache(maxsize=256)
def _covered(file: str, characters: frozenset[str]) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(file).get_charmap()
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(c for c in characters if ord(c) in known)
