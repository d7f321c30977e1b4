"""What is agreed between the batcher and those who ask it: limits, what it answers, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pydantic import Field

from fenlei.config_parts import Part
from fenlei.errors import FenleiError
from fenlei.modeling.prediction import Prediction

if TYPE_CHECKING:
    from fenlei.inference.explain import Variants


class Unset(Enum):
    """Stands for a threshold that a request does not name: None means that it shall not abstain."""

    UNSET = "unset"


UNSET = Unset.UNSET


class QueueFull(FenleiError):
    """More waits than can be done soon; the request was not taken.

    Attributes:
        retry_after: seconds in which what waits now is done, 1 to 60.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"more requests wait than can be answered soon; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class QueueTimeout(FenleiError):
    """A request waited too long for its turn and was given up; nothing of it was scored.

    Attributes:
        retry_after: as for :class:`QueueFull`.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the request waited too long for its turn; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Draining(FenleiError):
    """The server ends; it takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class BatchLimits(Part):
    """How much is scored at once, and how much may wait."""

    batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens in one forward pass, shared ones left out; by default what prediction takes: 1024 on CPU, 16384 on a
    GPU."""
    max_wait_ms: float = Field(default=0.0, ge=0.0, le=1000.0)
    """How long a pass that is not full waits for company when the model is idle. 0: not at all; rows that come while
    the model is busy are scored together in any case."""
    max_queue_texts: int = Field(default=4096, ge=1)
    """Most texts that wait."""
    max_queue_tokens: int = Field(default=1 << 20, ge=1)
    """Most tokens that wait."""
    max_queue_s: float | None = Field(default=4.0, gt=0.0)
    """A request is refused if what others are given before it is done would take longer than this, by the speed
    measured last; null: only the two limits above count. A classifier for which nothing waits takes one request in any
    case."""
    queue_timeout_s: float = Field(default=30.0, gt=0.0)
    """A request of which nothing was scored after this time is given up."""


@dataclass(frozen=True)
class Outcome:
    """The answers to a request.

    Attributes:
        predictions: one a row, in order.
        queue_seconds: from the arrival to the beginning of the first forward pass, tokenization included.
        score_seconds: from there to the end of the last one; other requests have their turns in between.
        tokens: tokens of all prompts, those that were computed once for many included.
        variants: with ``explain``, what the predictions are for.
    """

    predictions: list[Prediction]
    queue_seconds: float
    score_seconds: float
    tokens: int
    variants: Variants | None = None
