"""A client that sends requests at given times, whatever becomes of those before, and notes what each one got.

A client that waits for one answer before it sends the next request slows down with the server and never sees its
queue. Here arrivals are a Poisson process, and a latency is counted from the moment at which a request was due, so
that a client that is late itself does not hide anything ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

_PROBE_PAUSE = 0.1
# of a closed loop, after a refusal
_AGAIN = 0.05


@dataclass(frozen=True)
class Answer:
    """One request.

    Attributes:
        due: when it was to be sent, in seconds since the beginning.
        sent: when it was.
        ended: when its answer was there.
        status: the HTTP status; 0 where there was none.
        code: what the error is called; empty for a good answer.
        texts: texts in it.
        retry_after: the header, in seconds.
        good: whether the answer holds a label for each text.
    """

    due: float
    sent: float
    ended: float
    status: int
    code: str
    texts: int
    retry_after: float | None = None
    good: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.due


class Client:
    """Requests to one server.

    Args:
        url: of the server.
        texts: texts to send; they are taken in turn.
        texts_a_request: how many of them go into one.
        seed: of the arrivals.
        patience: longest wait for an answer.
    """

    def __init__(
        self,
        url: str,
        texts: Sequence[str],
        *,
        texts_a_request: int = 1,
        seed: int = 0,
        patience: float = 120.0,
    ) -> None:
        self.url, self._texts, self.size = url, texts, texts_a_request
        self._random, self._patience, self._next = random.Random(seed), patience, 0

    async def __aenter__(self) -> Client:
        # aiohttp takes a quarter of httpx' time for a request, and that time is missing on the server's processor
        # a connection for each request that is open: none waits for another one in here
        connector = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=self._patience)
        self._http = aiohttp.ClientSession(self.url, connector=connector, timeout=patience)
        self._begin = time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begin

    async def ask(self, texts: Sequence[str] | None = None, due: float | None = None) -> Answer:
        """One request, with the next texts by default."""
        texts = self._take() if texts is None else texts
        body = {"text": texts[0]} if len(texts) == 1 else {"texts": list(texts)}
        sent = self.now()
        due = sent if due is None else due
        try:
            async with self._http.post("/v1/classify", json=body) as found:
                content = await found.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            return Answer(due, sent, self.now(), 0, type(error).__name__, len(texts))
        after = found.headers.get("retry-after")
        good, code = _read(found.status, content, len(texts))
        return Answer(due, sent, self.now(), found.status, code, len(texts), float(after) if after else None, good)

    async def closed(self, requests: int, in_flight: int) -> tuple[list[Answer], float]:
        """So many requests with so many open at any time; refused ones are sent again.

        Returns:
            All answers, refusals among them, and the seconds that it took.
        """
        left, answers = [requests], []

        async def worker() -> None:
            while left[0] > 0:
                left[0] -= 1
                texts = self._take()
                while True:
                    answer = await self.ask(texts)
                    answers.append(answer)
                    if answer.status != 429:
                        break
                    await asyncio.sleep(_AGAIN)

        begin = self.now()
        await asyncio.gather(*(worker() for _ in range(min(in_flight, requests))))
        return answers, self.now() - begin

    async def open(self, rate: float, seconds: float, calm: float | None = None) -> tuple[list[Answer], float | None]:
        """Arrivals of a Poisson process, given that there are ``rate`` requests a second.

        Args:
            rate: requests a second.
            seconds: how long.
            calm: seconds of an answer when the server has little to do.

        Returns:
            The answers, and, with ``calm``, how long after the last arrival a new request first got an answer within
            three times that; None: none did while patience lasted.
        """
        # given their number, the arrivals of a Poisson process are at times that are drawn one by one
        times = sorted(self._random.uniform(0.0, seconds) for _ in range(round(rate * seconds)))
        begin = self.now()
        tasks = []
        for due in (begin + at for at in times):
            if (wait := due - self.now()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self.ask(due=due)))
        recovered = await self._recovered(calm) if calm is not None else None
        return list(await asyncio.gather(*tasks)), recovered

    async def get(self, path: str) -> int:
        """The status of another route."""
        try:
            async with self._http.get(path) as found:
                return found.status
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return 0

    async def metric(self, name: str) -> float:
        """A value of /metrics; 0 where it is not there."""
        async with self._http.get("/metrics") as found:
            text = await found.text()
        values = (line.rpartition(" ")[2] for line in text.split("\n") if line.split(" ")[0] == name)
        return float(next(values, 0.0))

    async def _recovered(self, calm: float) -> float | None:
        begin = self.now()
        while self.now() - begin < self._patience:
            answer = await self.ask()
            if answer.good and answer.seconds <= 3 * calm:
                return self.now() - begin
            await asyncio.sleep(_PROBE_PAUSE)
        return None

    def _take(self) -> list[str]:
        found = [self._texts[(self._next + i) % len(self._texts)] for i in range(self.size)]
        self._next += self.size
        return found


def _read(status: int, content: bytes, texts: int) -> tuple[bool, str]:
    """Whether an answer is a good one, and what its error is called."""
    try:
        body: Any = json.loads(content)
        if status == 200:
            results = body["results"]
            good = len(results) == texts and all(r["label"] in r["probabilities"] for r in results)
            return good, "" if good else "incomplete"
        return False, str(body["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return False, "not as agreed"
