from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from fenlei.evaluation import evaluate_predictions, pictures
from fenlei.evaluation.pictures import (
    classes_png,
    ladder_png,
    length_png,
    precision_recall_png,
    reliability_png,
    risk_coverage_png,
)
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions
from fenlei.tracking import confusion


@pytest.fixture
def metrics():
    rng = np.random.default_rng(0)
    names = ("体育", "财经", "科技")
    scores = rng.normal(-3, 3, (200, 3))
    calibration = Calibration(2.0, threshold=0.6, method="temperature")
    p = calibration.probabilities(scores, names)
    gold = [names[rng.choice(3, p=row)] for row in p]
    said = make_predictions([names] * 200, list(scores), [False] * 200, calibration)
    return evaluate_predictions(gold, said, names, calibration=calibration)


@pytest.mark.parametrize("draw", [reliability_png, risk_coverage_png, classes_png, precision_recall_png])
def test_drawn(tmp_path, metrics, draw, recwarn):
    path = draw(metrics, tmp_path / "p.png", title="测试集 $x_1")
    with Image.open(path) as picture:
        assert picture.width > 400
        colours = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 50
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert not [w for w in recwarn if "Glyph" in str(w.message)], "a title without a font would be boxes"


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def figure_of(draw, *args, **more):
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        patch.setattr(pictures, "save_figure", lambda figure, path: kept.append(figure) or path)
        draw(*args, **more)
    return kept[0]


def texts_of(draw, *args, **more):
    return [text.get_text() for text in figure_of(draw, *args, **more).findobj(Text)]


def test_the_weakest_classes_come_first_and_of_many_no_others(tmp_path, metrics):
    lowest = sorted(metrics["per_class"], key=lambda label: metrics["per_class"][label]["f1"])
    axes = figure_of(classes_png, metrics, tmp_path / "c.png").axes[0]
    found = [text.get_text() for text in axes.get_yticklabels()]
    assert axes.yaxis_inverted(), "the first one is on top"
    support = [metrics["per_class"][label]["support"] for label in lowest]
    assert found == [f"{label} ({n})" for label, n in zip(lowest, support, strict=True)]
    row = {"precision": 0.5, "recall": 0.5, "support": 3}
    many = {f"label {i}": {**row, "f1": i / 100} for i in range(100)} | {"absent": {**row, "f1": 0.0, "support": 0}}
    texts = texts_of(classes_png, {"per_class": many}, tmp_path / "c.png", title="test set")
    assert "test set: the 60 of 100 classes with the lowest F1" in texts
    assert "label 59 (3)" in texts
    assert "label 60 (3)" not in texts
    assert "absent (0)" not in texts
    high, low = classes_png({"per_class": many}, tmp_path / "many.png"), classes_png(metrics, tmp_path / "few.png")
    assert size_of(high)[1] > 3 * size_of(low)[1]


def test_classes_without_a_font_are_numbered(tmp_path, metrics, monkeypatch, recwarn):
    monkeypatch.setattr(confusion, "_cjk_candidates", lambda: [])
    texts = texts_of(classes_png, metrics, tmp_path / "c.png")
    assert any("1 = \\u" in text for text in texts), "the key"
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_the_ladder_with_its_intervals(tmp_path):
    rungs = [
        {"key": "majority", "title": "most frequent class", "rows": 50, "accuracy": 0.0,
         "accuracy_interval": [0.0, 0.07], "macro_f1": 0.2, "macro_f1_interval": [0.21, 0.3]},
        {"key": "few_shot", "title": "model, few-shot", "accuracy": None, "note": "no time", "notes": []},
        {"key": "tuned", "title": "model, tuned", "rows": 50, "accuracy": 1.0, "accuracy_interval": [0.93, 1.0],
         "macro_f1": 1.0, "macro_f1_interval": [1.0, 1.0]},
    ]  # fmt: skip
    ladder = {"rungs": rungs, "level": 0.95, "verdict": None}
    texts = texts_of(ladder_png, ladder, tmp_path / "l.png", title="阶梯")
    assert {
        "most frequent class (50)",
        "model, tuned (50)",
        "0.000",
        "1.000",
        "in brackets: rows; bars: 95% intervals",
    } <= set(texts)
    assert not [text for text in texts if "few-shot" in text], "not measured"
    size = size_of(ladder_png(ladder, tmp_path / "l.png"))
    assert size[0] > 700
    assert [p.name for p in tmp_path.iterdir()] == ["l.png"]


def test_before_and_after_side_by_side(tmp_path, metrics):
    both = reliability_png(metrics, tmp_path / "both.png")
    one = reliability_png({k: v for k, v in metrics.items() if k != "uncalibrated"}, tmp_path / "one.png")
    with Image.open(both) as wide, Image.open(one) as narrow:
        assert wide.width > 1.7 * narrow.width


def test_without_a_font_the_title_is_escaped(tmp_path, metrics, monkeypatch, recwarn):
    monkeypatch.setattr(confusion, "_cjk_candidates", lambda: [])
    assert confusion.title_style("测试")[0] == r"\u6d4b\u8bd5"
    risk_coverage_png(metrics, tmp_path / "p.png", title="测试")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_no_row_answered(tmp_path, metrics):
    nothing = {**metrics, "answered": 0, "answered_accuracy": None, "abstain_rate": 1.0}
    assert risk_coverage_png(nothing, tmp_path / "p.png").is_file()


def test_the_curves_of_the_weakest_classes(tmp_path, metrics):
    one = next(c for c in metrics["precision_recall"].values() if c)
    many = {f"label {i}": {**one, "average_precision": i / 10} for i in range(9)} | {"absent": None}
    texts = texts_of(precision_recall_png, {"precision_recall": many}, tmp_path / "p.png", title="test set")
    assert "test set: the 6 of 9 classes with the lowest AP" in texts
    assert "label 5 (AP 0.500)" in texts
    assert "label 6 (AP 0.600)" not in texts


def test_accuracy_by_length(tmp_path):
    bins = [{"low": 1, "high": 9, "n": 50, "accuracy": 0.8, "interval": [0.7, 0.9]}]
    groups = {name: {"n": n, "accuracy": 0.5, "interval": [0.4, 0.6]} for name, n in (("whole", 40), ("shortened", 10))}
    texts = texts_of(length_png, bins, groups, tmp_path / "l.png")
    assert {"1-9\n50 rows", "all whole\n40 rows", "all shortened\n10 rows"} <= set(texts)
    none = {**groups, "shortened": {"n": 0, "accuracy": None, "interval": None}}
    assert "all whole\n40 rows" not in texts_of(length_png, bins, none, tmp_path / "l.png")
    assert length_png(bins, groups, tmp_path / "l.png", title="测试集").is_file()
