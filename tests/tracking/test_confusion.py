from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fenlei.tracking import confusion, confusion_matrix_png

CHINESE = ["体育", "政治", "经济", "军事"]


@pytest.fixture(autouse=True)
def no_missing_glyphs(caplog: pytest.LogCaptureFixture) -> None:
    """matplotlib says when it draws boxes instead of characters."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with caplog.at_level(logging.WARNING):
            yield
    assert not [r for r in caplog.records if "font" in r.message.lower()]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


@pytest.mark.parametrize("n", [1, 2, 10, 50, 500])
def test_any_number_of_labels(tmp_path: Path, n: int) -> None:
    matrix = np.arange(n * n).reshape(n, n)
    path = confusion_matrix_png(matrix, [f"label {i}" for i in range(n)], tmp_path / "sub" / "c.png", "dev")
    width, height = size(path)
    assert 200 < width < 4500
    assert 200 < height < 4500
    assert [p.name for p in path.parent.iterdir()] == ["c.png"]


def dark_rows(path: Path) -> int:
    """Height in pixels of the cells in the darkest colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    matrix_only = pixels[:, : pixels.shape[1] * 3 // 4]  # without the colour bar
    darkest = np.array([8, 48, 107])  # matplotlib's Blues at 1.0
    return int((np.abs(matrix_only - darkest).sum(axis=2) < 6).any(axis=1).sum())


def test_colours_follow_the_row_and_an_absent_class_is_empty(tmp_path: Path) -> None:
    labels = ["a", "b", "c"]
    one = confusion_matrix_png([[1000, 0, 0], [0, 0, 0], [0, 0, 0]], labels, tmp_path / "1.png")
    two = confusion_matrix_png([[1000, 0, 0], [0, 4, 0], [0, 0, 0]], labels, tmp_path / "2.png")
    # a class of 4 rows is as dark as one of 1,000, one that does not occur is not
    assert dark_rows(one) > 50
    assert dark_rows(two) == pytest.approx(2 * dark_rows(one), rel=0.05)


def test_chinese_labels_are_drawn_with_a_font_that_has_them(tmp_path: Path) -> None:
    if confusion._fonts_for("体育") is None:
        pytest.skip("no font with Chinese characters is installed")
    fonts = confusion._fonts_for("".join(CHINESE))
    assert fonts is not None
    assert fonts[0] != "DejaVu Sans"
    labels = [*CHINESE, "Art $x$ and $y$", "line\nbreak\ttab", "名" * 80]
    matrix = np.eye(len(labels), dtype=int) * 7
    assert size(confusion_matrix_png(matrix, labels, tmp_path / "c.png", "开发集"))


def test_latin_labels_need_no_other_font() -> None:
    assert confusion._fonts_for("Sport é ß") == ("DejaVu Sans",)


def test_of_many_labels_those_with_the_most_errors_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = confusion._draw
    monkeypatch.setattr(confusion, "_draw", lambda *args: (drawn.append(args), real(*args)))
    matrix = np.eye(200, dtype=int) * 6
    matrix[150, 7] = matrix[3, 180] = 2
    confusion_matrix_png(matrix, [f"l{i}" for i in range(200)], tmp_path / "c.png", "dev")
    _, counts, names, title, _, shares = drawn[0]
    assert {"l3", "l7", "l150", "l180"} <= set(names)
    assert len(names) == 50
    assert title == "dev: the 50 of 200 labels with the most errors"
    at = names.index("l150"), names.index("l7")
    assert (counts[at], shares[at]) == (2, 0.25), "the share is that of the whole row"


def test_without_a_font_labels_are_numbered_not_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "_cjk_candidates", lambda: [])
    drawn = []
    real = confusion._draw
    monkeypatch.setattr(confusion, "_draw", lambda *args: (drawn.append(args[2]), real(*args)))
    assert size(confusion_matrix_png(np.eye(4), CHINESE, tmp_path / "c.png", "开发集"))
    assert drawn == [["1", "2", "3", "4"]]
    assert confusion._ascii("体育") == "\\u4f53\\u80b2"


def test_without_the_check_there_would_be_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "_fonts_for", lambda text: ("DejaVu Sans",))
    with pytest.raises(UserWarning, match="missing from font"):
        confusion_matrix_png(np.eye(4), CHINESE, tmp_path / "c.png")
    assert list(tmp_path.glob("*.png")) == []


def test_fonts_that_matplotlib_has_not_listed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    if confusion._fonts_for("体育") is None:
        pytest.skip("no font with Chinese characters is installed")
    listed = [f for f in font_manager.fontManager.ttflist if not confusion._CJK_FILES.search(Path(f.fname).name)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    assert confusion._fonts_for("体育") is not None


@pytest.mark.parametrize(("matrix", "labels"), [([[1, 2]], ["a"]), ([[1]], ["a", "b"]), ([], [])])
def test_shapes_that_do_not_fit(tmp_path: Path, matrix: list, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a confusion matrix"):
        confusion_matrix_png(matrix, labels, tmp_path / "c.png")
