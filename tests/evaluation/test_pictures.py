from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.pictures import reliability_png, risk_coverage_png
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


@pytest.mark.parametrize("draw", [reliability_png, risk_coverage_png])
def test_drawn(tmp_path, metrics, draw, recwarn):
    path = draw(metrics, tmp_path / "p.png", title="测试集 $x_1")
    with Image.open(path) as picture:
        assert picture.width > 400
        colours = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 50
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert not [w for w in recwarn if "Glyph" in str(w.message)], "a title without a font would be boxes"


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
