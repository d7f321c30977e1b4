"""Rows of which some cannot be predicted: which ones, and what the others get all the same.

Where a call for many rows fails, it is made again for each half of them, down to the rows at fault. What becomes of a
row depends on the rows of its chunk alone, so a run that is killed and goes on writes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fenlei.data import Example, StreamedRow
from fenlei.errors import ConfigError, DataError, FenleiError, ModelError
from fenlei.modeling.memory import ran_out
from fenlei.modeling.prediction import Prediction

T = TypeVar("T")
R = TypeVar("R")


class BulkPredictor(Protocol):
    """The two halves of a prediction; :class:`fenlei.inference.predictor.Predictor` is one."""

    def encode(self, examples: Sequence[Example]) -> Any:
        """Token ids of the rows; called in a thread while :meth:`score` is busy with other rows."""

    def score(self, prompts: Any, *, progress: Callable[[int], None] | None = None) -> Sequence[Prediction]:
        """One prediction a row, in their order; ``progress`` is called with the number of rows done since."""

    def forget_failed(self) -> None:
        """Called after a :meth:`score` that failed, to drop what it left in memory."""


def encode_rows(predictor: BulkPredictor, rows: Sequence[StreamedRow]) -> list[Any]:
    """For each row its prompt, or the error that says why it has none."""
    answers: list[Any] = [DataError(row.reason) if row.example is None else None for row in rows]
    places = [place for place, answer in enumerate(answers) if answer is None]

    def encode(part: Sequence[int]) -> Any:
        return predictor.encode([rows[place].example for place in part])  # type: ignore[misc]

    for place, found in zip(places, _halved(places, encode, (ConfigError, DataError)), strict=True):
        answers[place] = found
    return answers


def score_rows(
    predictor: BulkPredictor,
    rows: Sequence[StreamedRow],
    prompts: Sequence[Any],
    progress: Callable[[int], None],
    note: Callable[[str], None],
) -> list[Any]:
    """For each row its prediction, or the error that says why it has none.

    Args:
        predictor: scores them.
        rows: the rows.
        prompts: for each row what :func:`encode_rows` gave.
        progress: is told of rows that are done, and with a number below 0 of those that have to be done again.
        note: is told when memory runs out; fewer rows at once are tried then.

    Raises:
        ModelError: there is not enough memory for a row by itself.
    """

    def score(part: Sequence[int]) -> Sequence[Prediction]:
        told = 0

        def count(done: int) -> None:
            nonlocal told
            told += done
            progress(done)

        try:
            return predictor.score([prompts[place] for place in part], progress=count)
        except Exception:
            progress(-told)
            raise

    def fewer(part: Sequence[int], reason: str) -> None:
        predictor.forget_failed()
        if len(part) == 1:
            raise ModelError(
                f"{rows[part[0]].source}: not enough memory to score this row, even by itself ({reason}); "
                "free some memory, e.g. end other programs that use the device"
            )
        note(f"out of memory with {len(part)} rows at once: going on with fewer where needed ({reason})")

    answers = list(prompts)
    places = [place for place, answer in enumerate(answers) if not isinstance(answer, FenleiError)]
    for place, found in zip(places, _halved(places, score, (ModelError,), fewer), strict=True):
        answers[place] = found
    return answers


def _halved(
    items: Sequence[T],
    work: Callable[[Sequence[T]], Sequence[R]],
    refusals: tuple[type[FenleiError], ...],
    out_of_memory: Callable[[Sequence[T], str], None] | None = None,
) -> list[R | FenleiError]:
    """What ``work`` makes of each item; of an item that it refuses even by itself, the error."""
    if not items:
        return []
    reason = ""
    try:
        return list(work(items))
    except refusals as error:
        if len(items) == 1:
            return [error.with_traceback(None)]  # which would hold on to the tensors of the pass
    except (RuntimeError, MemoryError) as error:
        if out_of_memory is None or not ran_out(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason and out_of_memory is not None:  # not in the handler, whose traceback holds on to tensors as well
        out_of_memory(items, reason)
    middle = len(items) // 2
    return [
        answer for half in (items[:middle], items[middle:]) for answer in _halved(half, work, refusals, out_of_memory)
    ]
