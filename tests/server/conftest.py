"""Two classifiers on one tiny base model, with other labels, ranks and layers."""

from __future__ import annotations

import pytest

from tests.server.made import MOOD, NEWS, ON_CPU, build


@pytest.fixture(scope="session")
def news_folder(tmp_path_factory, tiny_folder):
    """Labels ``NEWS``, rank 8 on all layers, a fitted temperature and threshold."""
    calibration = {"method": "temperature", "temperature": 1.7, "threshold": 0.5}
    return build(tmp_path_factory.mktemp("served") / "news", tiny_folder, NEWS, seed=1, r=8, calibration=calibration)


@pytest.fixture(scope="session")
def mood_folder(tmp_path_factory, tiny_folder):
    """Labels ``MOOD``, rank 4 on two kinds of layers."""
    folder = tmp_path_factory.mktemp("served") / "mood"
    return build(folder, tiny_folder, MOOD, seed=2, r=4, alpha=32, target_modules=("q_proj", "down_proj"))


@pytest.fixture
def models(news_folder, mood_folder):
    """Both of them, loaded: ``news`` answers by default."""
    from fenlei.server.models import Models

    found = Models.open([("news", news_folder), ("mood", mood_folder)], overrides=ON_CPU)
    yield found
    found.close()
