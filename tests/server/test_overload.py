"""Promise 8: what is too much is refused, single texts and batches alike, and nothing grows. A process with fakes."""

from __future__ import annotations

import threading
from collections import Counter

import httpx

from tests.server.process import Server, until
from tests.server.test_lifecycle import CLASSIFY, IN_FLIGHT, gauge

PLACES, CLIENTS = 12, 120


def test_ten_times_too_much(tmp_path):
    hold = tmp_path / "hold"
    with Server(["news", "--max-queue-texts", PLACES], hold=hold) as server, server.client() as client:
        expected = client.post(CLASSIFY, json={"text": "x" * 5000}).json()["results"]
        before = server.memory
        hold.touch()
        first = Asked(server, [{"text": "first"}])  # it occupies the model
        until(lambda: gauge(client, "fenlei_in_flight_texts") == 1, "a text is being scored")
        bodies = [{"text": "x" * 5000} if n % 2 else {"texts": ["x" * 5000] * 3} for n in range(CLIENTS)]
        asked = Asked(server, bodies)
        # whoever has a place waits, everybody else has an answer
        until(lambda: len(asked.answers) + gauge(client, IN_FLIGHT) == CLIENTS + 1, "all have come")
        until(lambda: gauge(client, "fenlei_queue_texts") >= PLACES - 2, "the places are taken")
        assert {a.status_code for a in asked.answers} == {429}
        assert all(int(a.headers["Retry-After"]) >= 1 for a in asked.answers)
        assert gauge(client, "fenlei_queue_texts") <= PLACES
        assert server.memory - before < 50_000_000
        assert client.get("/health/ready").status_code == 200
        hold.unlink()
        first.join()
        asked.join()
        counts = Counter(a.status_code for a in [*first.answers, *asked.answers])
        assert set(counts) == {200, 429}
        assert sum(counts.values()) == CLIENTS + 1
        sizes = [len(a.json()["results"]) for a in asked.answers if a.status_code == 200]
        assert PLACES - 2 <= sum(sizes) <= PLACES
        for answer in asked.answers:
            if answer.status_code == 200:
                assert answer.json()["results"] == expected * len(answer.json()["results"])
        assert client.post(CLASSIFY, json={"text": "x" * 5000}).json()["results"] == expected
        assert gauge(client, IN_FLIGHT) == 0


class Asked:
    """Requests at the same time, each with a connection of its own."""

    def __init__(self, server: Server, bodies: list[dict]) -> None:
        self.answers: list[httpx.Response] = []
        self._server = server
        self._threads = [threading.Thread(target=self._ask, args=(body,)) for body in bodies]
        for thread in self._threads:
            thread.start()

    def _ask(self, body: dict) -> None:
        with self._server.client() as client:
            self.answers.append(client.post(CLASSIFY, json=body))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
