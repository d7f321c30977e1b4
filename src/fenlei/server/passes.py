"""One forward pass: the rows of several requests, and what comes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fenlei.errors import FenleiError, ModelError
from fenlei.modeling.prediction import Prediction
from fenlei.server.work import Job, Pass

if TYPE_CHECKING:
    from fenlei.inference.explain import Variants
    from fenlei.prompting import EncodedPrompt
    from fenlei.server.models import Served

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Request(Job):
    """A request and its answers.

    Attributes:
        lane: the classifier.
        future: has a result when all rows have an answer, or an error when one has none.
        prompts: its rows as token ids.
        variants: its row with and without each of its sentences, if that was asked and is known.
        predictions: the answers so far, by row.
        error: why a row has no answer.
        ended: when the last row was scored.
    """

    lane: Served
    future: asyncio.Future[None] = field(kw_only=True)
    prompts: list[EncodedPrompt] = field(default_factory=list)
    variants: Variants | None = None
    predictions: dict[int, Prediction] = field(default_factory=dict)
    error: FenleiError | None = None
    ended: float = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing more is to be scored."""
        return self.error is not None or len(self.predictions) == len(self.costs)


@dataclass(frozen=True)
class Scored:
    """What came of a pass.

    Attributes:
        answers: one a row.
        retried: rows that were scored alone, because the pass had failed.
    """

    answers: Sequence[Prediction | FenleiError]
    retried: int = 0


def score_rows(work: Pass) -> Scored:
    """The answers of a pass. If it fails, each row is scored alone, so that one row harms nobody else's."""
    predictor = work.lane.classifier.predictor
    prompts = [request.prompts[index] for request, index in work.rows]  # type: ignore[attr-defined]
    error: Exception
    try:
        return Scored(predictor.score(prompts))
    except Exception as found:
        error = found
    _log.error("a forward pass of %d texts failed: %s", len(prompts), type(error).__name__)
    _log.debug("", exc_info=error)
    predictor.forget_failed()
    if len(prompts) == 1:
        return Scored([as_fenlei(error)])
    answers: list[Prediction | FenleiError] = []
    for prompt in prompts:
        try:
            answers += predictor.score([prompt])
        except Exception as found:
            predictor.forget_failed()
            answers.append(as_fenlei(found))
    return Scored(answers, len(prompts))


def as_fenlei(error: BaseException, what: str = "the model") -> FenleiError:
    """What a request is told of an error; ``what`` is that which failed."""
    if isinstance(error, FenleiError):
        return error
    # no more than the kind: what a library says may hold the text
    made = ModelError(f"{what} failed on a text ({type(error).__name__}); the same text alone may go through later")
    made.__cause__ = error
    return made
