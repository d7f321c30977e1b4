"""Promise 18: limits come before the work that they bound. What needs a socket is in ``test_socket_limits.py``."""

from __future__ import annotations

import json
import threading

from fenlei.server import body as body_module
from fenlei.server.batcher import BatchLimits
from fenlei.server.service import MOST_EXPLAINED_CHARS
from fenlei.server.settings import Limits
from tests.server.client import opened, said, service_of
from tests.server.fake import fake_models, predictor_of
from tests.server.process import until

JSON = {"Content-Type": "application/json"}
CLASSIFY = "/v1/classify"


def body_of(size: int) -> bytes:
    """A good request of so many bytes."""
    start, end = b'{"text": "', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


class TestBody:
    def test_exactly_the_limit(self):
        with opened(limits={"max_body_bytes": 5000}) as client:
            assert client.post(CLASSIFY, content=body_of(5000), headers=JSON).status_code == 200
            answer = client.post(CLASSIFY, content=body_of(5001), headers=JSON)
            assert (answer.status_code, said(answer)) == (413, "body_too_large")
        with opened(limits={"max_body_bytes": 5001}) as client:
            assert client.post(CLASSIFY, content=body_of(5001), headers=JSON).status_code == 200, "negative control"

    def test_without_a_length(self):
        """Chunked: the bytes themselves are counted."""
        sent = []

        def pieces():
            for _ in range(1000):
                sent.append(1)
                yield b"x" * 1000

        with opened(limits={"max_body_bytes": 5000}) as client:
            answer = client.post(CLASSIFY, content=pieces(), headers=JSON)
            assert (answer.status_code, said(answer)) == (413, "body_too_large")

    def test_a_lying_length(self):
        with opened(limits={"max_body_bytes": 5000}) as client:
            headers = {**JSON, "Content-Length": "10"}
            answer = client.post(CLASSIFY, content=body_of(6000), headers=headers)
            assert (answer.status_code, said(answer)) == (413, "body_too_large")
            honest = client.post(CLASSIFY, content=b"{}", headers={**JSON, "Content-Length": "9" * 30})
            assert (honest.status_code, said(honest)) == (413, "body_too_large")

    def test_before_anything_is_parsed(self, monkeypatch):
        parsed = []
        monkeypatch.setattr(body_module, "parse_json", lambda body, _depth: parsed.append(len(body)))
        with opened(limits={"max_body_bytes": 1000}) as client:
            assert client.post(CLASSIFY, content=body_of(1001), headers=JSON).status_code == 413
            assert not parsed
            client.post(CLASSIFY, content=body_of(1000), headers=JSON)
            assert parsed == [1000], "negative control"

    def test_the_default(self):
        assert Limits().max_body_bytes == 2_000_000
        assert Limits().max_texts == 256


class TestAllBodies:
    """Bodies are in memory until their requests are answered; so all of them together are bounded."""

    def test_together(self):
        with Held(limits={"max_held_bytes": 10_000}) as held:
            held.send({"text": "a" * 6000})
            held.queued(1)
            answer = held.client.post(CLASSIFY, content=body_of(5000), headers=JSON)
            assert (answer.status_code, said(answer)) == (429, "too_many_bodies")
            assert answer.headers["Retry-After"]
            assert "fenlei_held_body_bytes 60" in held.client.get("/metrics").text
            held.send({"text": "a" * 3000})
            held.queued(2)
            held.go()
            assert [a.status_code for a in held.answers] == [200] * 3
            assert service_of(held.client).bodies.held == 0

    def test_one_that_is_alone(self):
        with opened(limits={"max_held_bytes": 1000}) as client:
            assert client.post(CLASSIFY, content=body_of(5000), headers=JSON).status_code == 200

    def test_nothing_is_kept_of_those_that_are_refused(self):
        with opened(limits={"max_body_bytes": 5000}) as client:
            for content in (body_of(6000), b"{", b'{"text": 1}', b'{"text": "a", "model": "nobody"}'):
                assert client.post(CLASSIFY, content=content, headers=JSON).status_code >= 400
            assert service_of(client).bodies.held == 0


class TestTexts:
    def test_number(self):
        with opened(limits={"max_texts": 3}) as client:
            assert client.post(CLASSIFY, json={"texts": ["a"] * 3}).status_code == 200
            answer = client.post(CLASSIFY, json={"texts": ["a"] * 4})
            assert (answer.status_code, said(answer)) == (422, "too_many_texts")
            answer = client.post("/v1/completions", json={"prompt": ["a"] * 4})
            assert (answer.status_code, said(answer)) == (422, "too_many_texts")

    def test_ten_thousand(self):
        with opened() as client:
            answer = client.post(CLASSIFY, json={"texts": ["a"] * 10_000})
            assert (answer.status_code, said(answer)) == (422, "too_many_texts")

    def test_length(self):
        with opened(limits={"max_text_chars": 10}) as client:
            assert client.post(CLASSIFY, json={"text": "好" * 10}).status_code == 200
            answer = client.post(CLASSIFY, json={"texts": ["好", "好" * 11]})
            assert (answer.status_code, said(answer)) == (422, "text_too_long")
            assert "text 1 has 11 characters" in answer.json()["error"]["message"]
            chat = {"messages": [{"role": "user", "content": "好" * 11}]}
            assert said(client.post("/v1/chat/completions", json=chat)) == "text_too_long"

    def test_length_of_what_is_explained(self):
        with opened() as client:
            for size, status in ((MOST_EXPLAINED_CHARS, 200), (MOST_EXPLAINED_CHARS + 1, 422)):
                answer = client.post(CLASSIFY, json={"text": "a" * size, "explain": True})
                assert answer.status_code == status
            assert said(answer) == "text_too_long"

    def test_nothing_reaches_the_tokenizer(self):
        models = fake_models()
        predictor_of(models).encode = None  # type: ignore[method-assign, assignment]
        with opened(models, limits={"max_texts": 3, "max_text_chars": 10}) as client:
            assert client.post(CLASSIFY, json={"texts": ["a"] * 4}).status_code == 422
            assert client.post(CLASSIFY, json={"text": "a" * 11}).status_code == 422
            answer = client.post(CLASSIFY, json={"text": "a"})
            assert (answer.status_code, said(answer)) == (503, "model_failed"), "negative control"

    def test_depth(self):
        nested = {"text": "a", "model": [[[[["a"]]]]]}
        with opened(limits={"max_json_depth": 5}) as client:
            assert said(client.post(CLASSIFY, json=nested)) == "json_too_deep"
        with opened(limits={"max_json_depth": 6}) as client:
            assert said(client.post(CLASSIFY, json=nested)) == "invalid_request"


class Held:
    """A server whose model has begun a text and does not go on until it is told to."""

    def __init__(self, *, limits=None, **batch):
        self.models = fake_models()
        self.predictor = predictor_of(self.models)
        self.answers: list = []
        self._threads: list[threading.Thread] = []
        self._batch, self._limits = BatchLimits(**batch), limits

    def __enter__(self):
        self._open = opened(self.models, batch=self._batch, limits=self._limits)
        self.client = self._open.__enter__()
        self.predictor.go.clear()
        self.send({"text": "first"})
        until(lambda: service_of(self.client).load()["in_flight_texts"] == 1, "a text is being scored")
        return self

    def __exit__(self, *error):
        self.go()
        self._open.__exit__(*error)

    def send(self, values):
        """A request in a thread of its own."""
        thread = threading.Thread(target=lambda: self.answers.append(self.client.post(CLASSIFY, json=values)))
        thread.start()
        self._threads.append(thread)

    def queued(self, texts):
        until(lambda: service_of(self.client).load()["queued_texts"] == texts, f"{texts} texts wait")

    def go(self):
        self.predictor.go.set()
        for thread in self._threads:
            thread.join()


class TestQueue:
    def test_full_by_texts(self):
        with Held(max_queue_texts=4) as held:
            held.send({"texts": ["a"] * 4})
            held.queued(4)
            answers = [held.client.post(CLASSIFY, json=values) for values in ({"text": "b"}, {"texts": ["b"] * 3})]
            for answer in answers:
                assert (answer.status_code, said(answer)) == (429, "queue_full")
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json()["error"]["type"] == "rate_limit_error"
            held.go()
            assert [a.status_code for a in held.answers] == [200, 200]
            assert held.client.post(CLASSIFY, json={"text": "b"}).status_code == 200

    def test_full_by_tokens(self):
        with Held(max_queue_tokens=50) as held:
            held.send({"text": "a" * 40})
            held.queued(1)
            assert said(held.client.post(CLASSIFY, json={"text": "b" * 40})) == "queue_full"
            held.go()

    def test_waited_too_long(self):
        with Held(queue_timeout_s=0.05) as held:
            answer = held.client.post(CLASSIFY, json={"text": "b"})
            assert (answer.status_code, said(answer)) == (429, "queue_timeout")
            assert answer.headers["Retry-After"]
            held.go()
            assert [a.status_code for a in held.answers] == [200], "one that is being scored is not given up"

    def test_the_server_answers_while_it_scores(self):
        with Held() as held:
            for path in ("/health/live", "/health/ready", "/v1/models", "/metrics", "/"):
                assert held.client.get(path).status_code == 200
            assert not held.answers, "the text is still being scored"

    def test_explain_counts_as_its_texts(self):
        with Held(max_queue_texts=3) as held:
            held.send({"text": "a"})
            held.queued(1)
            answer = held.client.post(CLASSIFY, json={"text": "一。二。三。", "explain": True})
            assert (answer.status_code, said(answer)) == (429, "queue_full")
            held.go()


def test_big_bodies_are_parsed_apart(monkeypatch):
    """In another thread, so that the event loop goes on."""
    threads = []
    parse = body_module.parse_json

    def noting(*args):
        threads.append(threading.current_thread().name)
        return parse(*args)

    monkeypatch.setattr(body_module, "parse_json", noting)
    with opened() as client:
        for size in (100, 1_000_000):
            content = json.dumps({"text": "x" * size}).encode()
            assert client.post(CLASSIFY, content=content, headers=JSON).status_code == 200
    assert "asyncio_" not in threads[0]
    assert "asyncio_" in threads[1]
