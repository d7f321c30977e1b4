"""Nothing of what is sent stands in the log: a canary in every place of a request, then the whole log is read."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from fenlei.server import envelope
from fenlei.server.logs import PlainFormatter
from tests.server.fake import POISON
from tests.server.process import Server, receive, until

CANARY = "Wiesenpieper-7391"
ROUTES = ("/v1/classify", "/v1/chat/completions", "/v1/completions")
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def keyed(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{CANARY}-key\n", "utf-8")
    (tmp_path / "root").mkdir()
    arguments = ["news", "--api-key-file", keys, "--admin", "--admin-root", tmp_path / "root", "--body-seconds", 1]
    with Server(arguments, hold=tmp_path / "hold") as server:
        yield server


def bodies() -> list[bytes]:
    """Good and bad ones, each with the canary."""
    values = [
        {"text": CANARY}, {"texts": [CANARY, CANARY]}, {"text": CANARY, "explain": True}, {"text": CANARY + POISON},
        {"text": CANARY + POISON, "explain": True},
        {"text": "a", CANARY: 1}, {"text": "a", "model": CANARY}, {"text": "a", "candidates": [CANARY]},
        {"messages": [{"role": "user", "content": CANARY}]}, {"messages": [{"role": CANARY, "content": CANARY}]},
        {"messages": [{"role": "user", "content": CANARY + POISON}]}, {"prompt": [CANARY]}, {"prompt": {CANARY: 1}},
        {"name": CANARY, "path": CANARY}, {"name": "x", "path": f"../{CANARY}"},
    ]  # fmt: skip
    plain = [json.dumps(v, ensure_ascii=False).encode() for v in values]
    broken = [f'{{"{CANARY}"'.encode(), CANARY.encode(), CANARY.encode() + b"\xff", b'{"text": "' + CANARY.encode()]
    return [*plain, *broken, f'{{"{CANARY}": 1, "{CANARY}": 2}}'.encode(), b"[" * 50 + CANARY.encode()]


def test_no_word_of_a_request_is_logged(keyed):
    headers = {"Authorization": f"Bearer {CANARY}-key", "User-Agent": CANARY, "Referer": CANARY, "X-Note": CANARY}
    with keyed.client(headers=headers) as client:
        statuses = set()
        for body in bodies():
            for route in (*ROUTES, "/v1/admin/models"):
                answer = client.post(f"{route}?q={CANARY}", content=body, headers=JSON)
                statuses.add(answer.status_code)
        assert {200, 400, 403, 404, 422, 503} <= statuses
        assert 500 not in statuses
        for method, path in (
            ("GET", f"/{CANARY}"), ("GET", f"/assets/{CANARY}"), ("GET", f"/v1/models/{CANARY}"),
            ("DELETE", f"/v1/admin/models/{CANARY}"), (CANARY, "/"), ("GET", f"/?x={CANARY}"),
        ):  # fmt: skip
            assert client.request(method, path).status_code in {200, 404, 405, 409}
        for more in (
            {"Host": f"{CANARY}.example"},
            {"Origin": f"http://{CANARY}"},
            {"Authorization": f"Bearer {CANARY}"},
        ):
            assert client.get("/v1/models", headers=more).status_code in {401, 403}
        assert CANARY not in client.get("/metrics").text
    with keyed.connect() as connection:
        connection.sendall(f"{CANARY} {CANARY}\r\n\r\n".encode())
        receive(connection)
    with keyed.connect() as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CANARY}-key\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 999\r\n\r\n{CANARY}".encode())
        assert b" 408 " in receive(connection)
    keyed.signal()
    assert keyed.wait() == 0
    assert "POST /v1/classify 200" in keyed.text
    assert "RuntimeError" in keyed.text, "what happened is told"
    assert CANARY not in keyed.text
    assert CANARY.encode().hex() not in keyed.text


def test_the_access_log(tmp_path):
    with Server(["news"], hold=tmp_path / "hold") as server:
        with server.client() as client:
            client.post("/v1/classify?secret=1", json={"text": "a"})
            client.get("/v1/models/nobody")
            client.get("/nothing")
        server.wait_for(r"fenlei\.access: 127\.0\.0\.1 POST /v1/classify 200 \d+ ms$")
        server.wait_for(r"GET /v1/models/\{name\} 404")
        server.wait_for(r"GET other 404")


def test_no_access_log(tmp_path):
    with Server(["news", "--no-access-log"], hold=tmp_path / "hold") as server:
        with server.client() as client:
            assert client.get("/v1/models").status_code == 200
        server.signal()
        assert server.wait() == 0
        assert "fenlei.access" not in server.text


class TestControls:
    """The canary would be seen."""

    def test_in_an_exceptions_message(self):
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            record = logging.LogRecord(
                "x", logging.ERROR, "f", 1, "failed", (), (type(error), error, error.__traceback__)
            )
        assert CANARY in logging.Formatter().format(record)
        record.exc_text = None
        plain = PlainFormatter().format(record)
        assert CANARY not in plain
        assert "ValueError" in plain
        assert "test_http_log.py" in plain

    def test_in_a_path(self, monkeypatch, caplog):
        from tests.server.client import opened

        with caplog.at_level(logging.INFO, "fenlei.access"), opened() as client:
            client.get(f"/{CANARY}")
            assert CANARY not in caplog.text
            monkeypatch.setattr(envelope, "route_of", lambda path: path)
            client.get(f"/{CANARY}")
            assert CANARY in caplog.text

    def test_in_an_error_that_nobody_waits_for(self, caplog):
        from fenlei.server.logs import note_loop_error

        note_loop_error(None, {"message": CANARY, "exception": ValueError(CANARY), "future": CANARY})
        assert CANARY not in caplog.text
        assert "ValueError" in caplog.text


def test_many_threads_one_log(tmp_path):
    """Lines of requests at the same time are whole."""
    with Server(["news"], hold=tmp_path / "hold") as server:

        def ask():
            with server.client() as client:
                for _ in range(20):
                    client.post("/v1/classify", json={"text": "a"})

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: sum("POST /v1/classify 200" in line for line in server.log) == 160, "160 lines")
