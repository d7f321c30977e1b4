"""A server with two classifiers, a browser, and the page opened in it."""

from __future__ import annotations

import pytest

from tests.evaluation.report import chromium
from tests.server.made import ON_CPU, build
from tests.server.playground.visits import MANY, Served, Visitor


@pytest.fixture(scope="module")
def served(news_folder, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "many"
    calibration = {"method": "none", "temperature": 1.0, "signal": "entropy", "threshold": -0.25}
    many = build(folder, tiny_folder, MANY, seed=3, r=8, max_length=640, calibration=calibration)
    found = Served([("news", news_folder), ("many", many)], ON_CPU)
    yield found
    found.close()


@pytest.fixture(scope="module")
def opened():
    if chromium.BINARY is None:
        pytest.skip("no chromium here")
    found = Visitor()
    yield found
    found.close()


@pytest.fixture
def page(opened, served):
    """The page, opened anew; afterwards: nothing was asked of anybody else, and nothing was refused by the policy."""
    served.faults.reset()
    opened.console.clear()
    opened.requests.clear()
    opened.visit(served.url)
    yield opened
    served.faults.gate.set()
    assert opened.complaints() == []
    assert [u for u in opened.requests if not u.startswith((served.url, "about:blank", "blob:" + served.url))] == []
