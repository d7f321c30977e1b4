"""From single requests to full forward passes.

Requests come to an event loop. Their texts are tokenized in one thread, ahead of the model; forward passes are made in
another one, :attr:`fenlei.server.models.Models.scoring`, one at a time. Which rows go together is said in
:mod:`fenlei.server.work`.

Work that cannot be done soon is refused when it comes, so that a client can go elsewhere or come back later, and
nothing grows with the load: a request is taken as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from fenlei.data.example import Example
from fenlei.errors import DataError, FenleiError
from fenlei.modeling.memory import trim_memory
from fenlei.modeling.prediction import Prediction
from fenlei.server.choices import abstaining, calibration_for, candidates_of
from fenlei.server.encoding import EncodingThread
from fenlei.server.models import Models, Served
from fenlei.server.passes import Request, as_fenlei, score_rows
from fenlei.server.rate import Rate
from fenlei.server.soundness import Soundness
from fenlei.server.terms import UNSET, BatchLimits, Draining, Outcome, QueueFull, QueueTimeout, Unset
from fenlei.server.work import Pass, WaitingLine

if TYPE_CHECKING:
    from fenlei.prompting import EncodedPrompt

__all__ = ["UNSET", "BatchLimits", "Batcher", "Draining", "Outcome", "QueueFull", "QueueTimeout", "Unset"]
_log = logging.getLogger(__name__)
_LONGEST_RETRY, _SHORTEST_RETRY = 60.0, 1.0
# texts of a large request that are tokenized before another request has its turn
_ENCODED_AT_ONCE = 32
# a text that is not tokenized yet counts for its characters too: it takes memory, whatever will be left out of it
_CHARACTERS_A_TOKEN = 16
# a pass that is not full waits for those who were answered just before: while they keep coming, at most seconds apart,
# and for no more than a part of the time that their own pass took
_RETURN_GAP, _RETURN_PART = 0.02, 0.1
_TRIM_SECONDS = 60.0  # without it memory rises by a percent now and then, and stays there


class Batcher:
    """Scores the rows of many requests together.

    Its methods are called from one event loop; use :meth:`start` first and :meth:`stop` at the end.

    Args:
        models: the classifiers.
        limits: see there.
        observe: is told the number of texts of each pass, in the scoring thread.
    """

    def __init__(
        self, models: Models, limits: BatchLimits | None = None, *, observe: Callable[[int], None] | None = None
    ) -> None:
        self.models, self.limits, self._observe = models, limits or BatchLimits(), observe
        if self.limits.batch_tokens is not None:
            models.use_batch_tokens(self.limits.batch_tokens)
        self._encoding = EncodingThread()
        self._changed = threading.Condition()  # guards everything below it
        self._line = WaitingLine()
        self._rate = Rate()
        self.soundness = Soundness(models)
        self._running = False  # a turn on the scoring thread is due or in progress
        self._in_flight: Pass | None = None
        self._answered: tuple[int, float] | None = None  # texts and seconds of the pass that has just ended
        self._trimmed = time.monotonic()
        self._draining = False
        self._counts = dict.fromkeys(("passes", "scored", "retried", "failed", "refused", "timed_out"), 0)
        self._open: set[Request] = set()  # from here on: the event loop's own
        self._working = 0
        self._idle = asyncio.Event()
        self._stopped = True

    async def start(self) -> None:
        """From here on requests are taken."""
        self._stopped = False

    async def stop(self, seconds: float) -> bool:
        """Takes no more requests and finishes those that were taken.

        Args:
            seconds: time for that; what is not done then fails with :class:`Draining`.

        Returns:
            Whether all were finished.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        if not self._working:
            self._idle.set()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            with self._changed:
                self._line.clear()
            for request in self._open:
                _fail(request, Draining())
        finished, self._stopped = not self._working, True
        self._encoding.stop()
        return finished

    async def classify(
        self,
        served: Served,
        rows: Sequence[Example],
        *,
        candidates: Sequence[str] | None = None,
        threshold: float | Unset | None = UNSET,
        explain: bool = False,
    ) -> Outcome:
        """Classifies the rows of one request.

        When it is cancelled, what was not scored yet is dropped.

        Args:
            served: which classifier.
            rows: one or more; each may bring its own candidates.
            candidates: choose among these labels, for every row.
            threshold: abstain below this confidence, None: never; by default the classifier's own.
            explain: with one row: score it without each of its sentences, too. It waits as one text until its
                sentences are known, then as so many.

        Raises:
            QueueFull: too much waits; nothing was scored.
            QueueTimeout: the request did not get its turn in time.
            Draining: the server ends.
            DataError: no row, a candidate that is no label, or a threshold that the classifier's signal cannot have.
            ModelError: the model, or its tokenizer, failed on a row of this request.
        """
        names = candidates_of(served, candidates)
        calibration = calibration_for(served, threshold)
        if not rows:
            raise DataError("no text to classify; expected one or more")
        if explain and len(rows) > 1:
            raise DataError(f"explain: expected one text, found {len(rows)}")
        with self._work():
            request = await self._answer(served, rows, names, explain)
        assert request.began is not None
        found = [request.predictions[i] for i in range(len(request.costs))]
        return Outcome(
            found if calibration is None else abstaining(found, calibration),
            queue_seconds=request.began - request.arrived,
            score_seconds=request.ended - request.began,
            tokens=sum(len(prompt.input_ids) for prompt in request.prompts),
            variants=request.variants,
        )

    def load(self) -> dict[str, float]:
        """What there is to do and how fast it goes.

        Returns:
            ``queued_texts``, ``queued_tokens``: not given to the model yet; ``in_flight_texts``: in the pass that runs;
            ``open_requests``; ``texts_per_second``, ``tokens_per_second``: of the last seconds of scoring, 0 before the
            first; ``queue_seconds``: what waits, at that speed; and totals since the start: ``passes``,
            ``scored_texts``, ``retried_texts`` (scored alone after their pass had failed), ``failed_texts``,
            ``refused_requests``, ``timed_out_requests``.
        """
        with self._changed:
            counts, tokens = self._counts, self._line.tokens
            return {
                "queued_texts": self._line.texts,
                "queued_tokens": tokens,
                "in_flight_texts": len(self._in_flight.rows) if self._in_flight else 0,
                "open_requests": len(self._open),
                "texts_per_second": self._rate.texts or 0.0,
                "tokens_per_second": self._rate.tokens or 0.0,
                "queue_seconds": tokens / self._rate.tokens if self._rate.tokens else 0.0,
                "passes": counts["passes"],
                "scored_texts": counts["scored"],
                "retried_texts": counts["retried"],
                "failed_texts": counts["failed"],
                "refused_requests": counts["refused"],
                "timed_out_requests": counts["timed_out"],
            }

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        """What begins in here is finished before the batcher stops."""
        if self._draining or self._stopped:
            raise Draining
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if self._draining and not self._working:
                self._idle.set()

    async def _answer(
        self, served: Served, rows: Sequence[Example], names: tuple[str, ...] | None, explain: bool
    ) -> Request:
        loop = asyncio.get_running_loop()
        request = Request(served, [], time.monotonic(), future=loop.create_future())
        self._admit(request, rows)
        late = loop.call_later(self.limits.queue_timeout_s, self._give_up, request)
        self._open.add(request)
        encoding = asyncio.ensure_future(self._encode(request, rows, names, explain))
        try:
            await request.future
        finally:
            encoding.cancel()  # of one that is given up, what has not begun is left out
            late.cancel()
            self._open.discard(request)
            with self._changed:
                self._line.remove(request)
        return request

    def _admit(self, request: Request, rows: Sequence[Example]) -> None:
        """Gives a request its place in the queue, or another one when it has other rows.

        Raises:
            QueueFull: there is none; it has lost the one that it had.
        """
        predictor, limits = request.lane.classifier.predictor, self.limits
        longest, budget = predictor.encoder.config.max_length, predictor.batch_tokens
        costs = [max(1, min(len(r.text), longest), len(r.text) // _CHARACTERS_A_TOKEN) for r in rows]
        with self._changed:
            line, rate = self._line, self._rate.tokens
            line.remove(request)
            request.expect(costs)
            if line.has(request.lane):  # else a request that is larger than the limits could never be answered
                ahead = line.ahead(request.lane, budget, request.tokens)
                too_long = rate is not None and limits.max_queue_s is not None and ahead > limits.max_queue_s * rate
                # a full pass may wait on the slowest machine: small ones are slower still, so that where only they were
                # let in, the speed measured on them would keep it so
                too_long = too_long and line.tokens_of(request.lane) + request.tokens > budget
                too_many = line.texts + len(rows) > limits.max_queue_texts
                if too_long or too_many or line.tokens + request.tokens > limits.max_queue_tokens:
                    self._counts["refused"] += 1
                    raise QueueFull(self._seconds(ahead if too_long else line.tokens))
            line.expect(request, budget)

    def _seconds(self, tokens: int) -> float:
        """When to come back: the time that so many tokens take, in bounds."""
        rate = self._rate.tokens
        return min(_LONGEST_RETRY, max(_SHORTEST_RETRY, tokens / rate if rate else 0.0))

    def _give_up(self, request: Request) -> None:
        """The request has waited for as long as it may."""
        with self._changed:
            if request.began is not None or request.future.done():
                return
            self._line.remove(request)
            self._counts["timed_out"] += 1
            error = QueueTimeout(self._seconds(self._line.tokens))
        _fail(request, error)

    async def _encode(
        self, request: Request, rows: Sequence[Example], names: tuple[str, ...] | None, explain: bool
    ) -> None:
        """Tokenizes the rows of a request and gives them to the scoring thread; what fails is the request's error."""
        predictor = request.lane.classifier.predictor

        def encode(part: Sequence[Example]) -> tuple[list[EncodedPrompt], list[int], int]:
            prompts = predictor.encode(part, candidates=names)
            return prompts, predictor.costs(prompts), predictor.beginning_cost(prompts[0])

        costs: list[int] = []
        beginning = 0
        try:
            if explain:
                from fenlei.inference.explain import leave_out

                request.variants = await self._encoding.do(leave_out, predictor.encoder, rows[0], names)
                rows = request.variants.rows
                self._admit(request, rows)
            for start in range(0, len(rows), _ENCODED_AT_ONCE):
                prompts, more, beginning = await self._encoding.do(encode, rows[start : start + _ENCODED_AT_ONCE])
                request.prompts += prompts
                costs += more
        except Exception as error:
            _fail(request, as_fenlei(error))
            return
        # rows that differ in their candidates among themselves go with nobody else's
        choices = {prompt.candidates for prompt in request.prompts}
        group = choices.pop() if len(choices) == 1 else object()
        with self._changed:
            # candidates that are asked for the first time: the beginning of the prompt is the first one's to compute
            if beginning and not self._line.has(request.lane, group):
                costs[0] += beginning
            if self._line.add(request, costs, group):
                self._go()
                self._changed.notify_all()

    def _go(self) -> None:
        """Has the scoring thread take its next turn, if there is something to do; the lock is held."""
        if self._running or self._line.ready(0.0, 0.0)[0] is None:
            return
        self.models.scoring.submit(self._turn)
        self._running = True

    def _turn(self) -> None:
        """One forward pass, on the scoring thread. Then others who want to do something there come first."""
        work: Pass | None = None
        try:
            work = self._next()
            if work is not None:
                self._score(work)
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _log.exception("scoring failed outside of the model")
            if work is not None:
                self._deliver(work, [as_fenlei(error)] * len(work.rows))
        finally:
            with self._changed:
                self._running, self._in_flight = False, None
                if not self._stopped:
                    self._go()

    def _next(self) -> Pass | None:
        with self._changed:
            while True:
                now = time.monotonic()
                lane, at = self._line.ready(0.0 if self._draining else self.limits.max_wait_ms / 1000, now)
                if lane is None or at is None:
                    return None
                if at <= now:
                    if self._await_return(lane, now):
                        continue
                    self._in_flight = self._line.take(lane, now)
                    self._counts["passes"] += 1
                    return self._in_flight
                self._changed.wait(at - now)

    def _await_return(self, lane: Hashable, now: float) -> bool:
        """Lets those come back who were answered a moment ago, where they are more than wait now; the lock is held.

        Clients with a number of requests in flight send the next ones all together when a pass has ended. Without a
        moment's patience they meet a pass that has begun with the few that were left, so that full passes and nearly
        empty ones take turns: a tenth fewer texts a second with 64 in flight.

        Returns:
            Whether time has passed, so that one has to look again.
        """
        answered, self._answered = self._answered, None
        if answered is None or self._draining or answered[0] <= self._line.ready_texts(lane):
            return False
        end = now + _RETURN_PART * answered[1]
        while not (self._line.fills_a_pass(lane) or self._draining):
            left = min(_RETURN_GAP, end - time.monotonic())
            if left <= 0 or not self._changed.wait(left):
                break
        return True

    def _score(self, work: Pass) -> None:
        begin = time.monotonic()
        found = score_rows(work)
        seconds = time.monotonic() - begin
        failed = sum(isinstance(answer, FenleiError) for answer in found.answers)
        with self._changed:
            self._in_flight, self._answered = None, (len(work.rows), seconds)
            if not failed:  # a failure may be quick, and says nothing of the speed
                self._rate.add(len(work.rows), work.tokens, seconds)
            self._counts["scored"] += len(work.rows) - failed
            self._counts["failed"] += failed
            self._counts["retried"] += found.retried
        if self._observe is not None:
            self._observe(len(work.rows))
        self._deliver(work, found.answers)
        self.soundness.note(failed < len(work.rows))
        if time.monotonic() > self._trimmed + _TRIM_SECONDS:
            trim_memory()
            self._trimmed = time.monotonic()

    def _deliver(self, work: Pass, answers: Sequence[Prediction | FenleiError]) -> None:
        """Gives answers to their requests, and tells the event loop of those that are done."""
        now = time.monotonic()
        finished: dict[Request, None] = {}
        for (request, index), answer in zip(work.rows, answers, strict=True):
            assert isinstance(request, Request)
            if isinstance(answer, FenleiError):
                request.error = request.error or answer
            else:
                request.predictions[index] = answer
            request.ended = now
            if request.done:
                finished[request] = None
        with self._changed:
            for request in finished:
                if request.error is not None:
                    self._line.remove(request)  # its other rows are of no use
        for loop in {request.future.get_loop() for request in finished}:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_finish, list(finished))


def _finish(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.error is not None:
            _fail(request, request.error)
        elif not request.future.done():
            request.future.set_result(None)


def _fail(request: Request, error: FenleiError) -> None:
    if not request.future.done():
        request.future.set_exception(error)
