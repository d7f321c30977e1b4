"""What stands behind the routes: the classifiers, the batcher, and whether they may be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fenlei.data.example import Example
from fenlei.errors import ConfigError, DataError, ModelError
from fenlei.server.batcher import Batcher, BatchLimits, Draining, QueueFull, QueueTimeout
from fenlei.server.body import BodyBudget
from fenlei.server.errors import ApiError
from fenlei.server.metrics import Metrics
from fenlei.server.models import Models, Served, UnknownModel
from fenlei.server.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.requests import Request

    from fenlei.inference.explain import Explanation
    from fenlei.modeling.prediction import Prediction
    from fenlei.server.batcher import Outcome

Phase = Literal["starting", "ready", "draining"]
# seconds after which it is worth asking again: the model is loaded, or another server has taken over
RETRY_AFTER = 5.0
# an explanation reads the whole text, in the thread that everybody's texts go through
MOST_EXPLAINED_CHARS = 50_000
_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """What a request wants to know of its texts.

    Attributes:
        model: name of the classifier, or None.
        texts: one or more.
        candidates: labels to choose among, or None.
        how: ``threshold`` where the request says one; the batcher's keyword arguments.
    """

    model: str | None
    texts: Sequence[str]
    candidates: Sequence[str] | None
    how: dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """What the classifier said.

    Attributes:
        served: the classifier.
        predictions: one a text.
        tokens: how many were read.
        queue_seconds: how long the request waited.
        score_seconds: how long the model took.
        explanation: what each sentence does, if that was asked.
    """

    served: Served
    predictions: list[Prediction]
    tokens: int
    queue_seconds: float
    score_seconds: float
    explanation: Explanation | None = None


class Service:
    """Classifiers behind a batcher, with a state that every request sees.

    Args:
        settings: the server's.
        batch: the batcher's limits.
    """

    def __init__(self, settings: ServeSettings, batch: BatchLimits | None = None) -> None:
        self.settings = settings
        self.keys = settings.keys()
        self.phase: Phase = "starting"
        self.in_flight = 0
        self.bodies = BodyBudget(settings.limits.max_held_bytes)
        self.metrics = Metrics(self)
        self._batch = batch or BatchLimits()
        self._models: Models | None = None
        self._batcher: Batcher | None = None
        self._idle = asyncio.Event()
        # one classifier at a time is loaded, and what else is done in threads does not wait for it
        self.loading = ThreadPoolExecutor(1, thread_name_prefix="fenlei-add")

    @property
    def models(self) -> Models:
        """The classifiers; only once they are loaded."""
        assert self._models is not None, "the gate lets no request in before"
        return self._models

    async def open(self, models: Models) -> None:
        """From now on the classifiers can be asked."""
        self._models = models
        self._batcher = Batcher(models, self._batch, observe=self.metrics.batch)
        await self._batcher.start()
        if self.phase == "starting":
            self.phase = "ready"

    async def close(self, seconds: float) -> bool:
        """Takes no more work and finishes what was accepted.

        Args:
            seconds: how long that may take.

        Returns:
            Whether all of it is done.
        """
        self.phase = "draining"
        end = time.monotonic() + seconds
        try:
            await asyncio.wait_for(self._until_idle(), max(0.0, seconds))
        except asyncio.TimeoutError:
            pass
        done = self.in_flight == 0
        if self._batcher is not None:
            done = await self._batcher.stop(max(0.0, end - time.monotonic())) and done
            self._batcher = None
        if self._models is not None:
            self._models.close()
        self.loading.shutdown(wait=False, cancel_futures=True)
        return done

    def enter(self) -> None:
        """A request begins that the classifiers are to answer.

        Raises:
            ApiError: they cannot be asked yet, or no more.
        """
        if self.phase != "ready":
            what = "the classifiers are being loaded" if self.phase == "starting" else "the server is shutting down"
            raise ApiError(503, self.phase, what, retry_after=RETRY_AFTER)
        self.in_flight += 1

    def leave(self) -> None:
        """It has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    def works(self) -> bool:
        """Whether the model does; where it has failed, it is tried again for the next time that somebody asks."""
        if self._batcher is None or self._batcher.soundness.good:
            return True
        self._batcher.soundness.look_again()
        return False

    def load(self) -> dict[str, Any]:
        """How busy the batcher is."""
        return self._batcher.load() if self._batcher is not None else {}

    def get(self, name: str | None) -> Served:
        """A classifier by its name.

        Raises:
            ApiError: there is none.
        """
        try:
            return self.models.get(name)
        except UnknownModel as error:
            raise ApiError(404, "model_not_found", str(error), param="model") from None

    async def classify(self, request: Request, asked: Asked) -> Answered:
        """The predictions for texts; given up when the client goes away.

        Raises:
            ApiError: too many or too long texts, an unknown classifier or label, or no capacity.
        """
        served, rows, names = self._checked(asked)
        outcome = await _unless_gone(request, self._score(served, rows, names, asked.how))
        return self._counted(Answered(served, outcome.predictions, *_figures(outcome)))

    async def explain(self, request: Request, asked: Asked) -> Answered:
        """The prediction for one text, with what each of its sentences does.

        Raises:
            ApiError: as :meth:`classify`.
        """
        served, rows, names = self._checked(asked)
        if len(rows[0].text) > MOST_EXPLAINED_CHARS:
            message = f"the text has {len(rows[0].text)} characters; with explain at most {MOST_EXPLAINED_CHARS}"
            raise ApiError(422, "text_too_long", message, param="text")
        outcome = await _unless_gone(request, self._score(served, rows, names, {**asked.how, "explain": True}))
        assert outcome.variants is not None, "they were asked for"
        explanation = outcome.variants.explanation(outcome.predictions)
        return self._counted(Answered(served, [explanation.prediction], *_figures(outcome), explanation))

    def _checked(self, asked: Asked) -> tuple[Served, list[Example], tuple[str, ...] | None]:
        limits = self.settings.limits
        if len(asked.texts) > limits.max_texts:
            message = f"{len(asked.texts)} texts in one request; at most {limits.max_texts}: send them in several"
            raise ApiError(422, "too_many_texts", message, param="texts")
        for number, text in enumerate(asked.texts):
            if len(text) > limits.max_text_chars:
                message = f"text {number} has {len(text)} characters; at most {limits.max_text_chars}"
                raise ApiError(422, "text_too_long", message, param="texts")
        served = self.get(asked.model)
        rows = [Example(text, id=str(i), source=f"text {i}") for i, text in enumerate(asked.texts)]
        if asked.candidates is None:
            return served, rows, None
        try:
            names = tuple(served.classifier.labels.canonical(name) for name in asked.candidates)
        except DataError as error:
            raise ApiError(422, "unknown_candidate", str(error), param="candidates") from None
        return served, rows, names

    async def _score(
        self, served: Served, rows: Sequence[Example], names: tuple[str, ...] | None, how: dict[str, Any]
    ) -> Outcome:
        with _told():
            return await self._working().classify(served, rows, candidates=names, **how)

    def _working(self) -> Batcher:
        if self._batcher is None:
            raise Draining
        return self._batcher

    def _counted(self, answered: Answered) -> Answered:
        self.metrics.answered(answered)
        return answered

    async def _until_idle(self) -> None:
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()


@contextmanager
def _told() -> Iterator[None]:
    """The batcher's errors as answers."""
    try:
        yield
    except QueueFull as error:
        message = "the queue is full; try again later"
        raise ApiError(429, "queue_full", message, retry_after=error.retry_after) from None
    except QueueTimeout as error:
        message = "the request waited too long for the model; try again later"
        raise ApiError(429, "queue_timeout", message, retry_after=error.retry_after) from None
    except Draining:
        raise ApiError(503, "draining", "the server is shutting down", retry_after=RETRY_AFTER) from None
    except (DataError, ConfigError) as error:  # e.g. candidates that leave the prompt no room for a text
        raise ApiError(422, "invalid_request", str(error)) from None
    except ModelError as error:
        raise ApiError(503, "model_failed", str(error), retry_after=RETRY_AFTER) from None


def _figures(outcome: Outcome) -> tuple[int, float, float]:
    return outcome.tokens, outcome.queue_seconds, outcome.score_seconds


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What ``work`` returns; it is cancelled when the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "client_closed", "the client went away")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
