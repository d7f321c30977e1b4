"""The page of a ``fenlei serve`` process: while it loads, while it works, while it ends."""

from __future__ import annotations

import signal

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.server.process import Server, until


def test_from_the_first_moment_to_the_last(opened, tmp_path):
    go, hold = tmp_path / "go", tmp_path / "hold"
    opened.console.clear()
    opened.requests.clear()
    with Server([tmp_path], hold=hold, go=go) as server:
        client = server.client()
        assert client.get("/health/live").status_code == 200
        opened.call("Page.navigate", url=server.url)
        opened.wait("document.querySelector('#notice p')")
        assert opened.text("#notice p") == "The server is still loading its classifiers. This page waits for it."
        go.touch()
        opened.wait("document.documentElement.dataset.ready === 'yes'")
        assert opened.text("#notice p") is None
        assert opened.texts("#model option") == ["news", "mood"]
        opened.classify("国足今晚迎战韩国队")
        assert opened.text(".headline .said")
        hold.touch()
        opened.set("#text", "股市大涨")
        opened.click("#classify")
        opened.wait("!document.querySelector('#text-stop').hidden")
        until(lambda: "fenlei_in_flight_texts 1.0" in client.get("/metrics").text, "a text is being scored")
        server.signal(signal.SIGTERM)
        server.wait_for("shutting down: 1 requests to finish")
        hold.unlink()
        opened.wait("document.querySelector('#result').getAttribute('aria-busy') === 'false'")
        assert opened.text("#history-list .text") == "股市大涨", "what was accepted is answered"
        assert server.wait() == 0
    assert opened.complaints() == []
    assert [url for url in opened.requests if not url.startswith((server.url, "about:blank"))] == []
