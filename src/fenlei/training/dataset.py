"""Labelled rows as token ids, and how often each is seen in an epoch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fenlei.data.example import Example
from fenlei.prompting import PromptEncoder


@dataclass(frozen=True)
class TrainingRow:
    """One row ready to train on: ids of prompt and answer, and where the answer begins."""

    input_ids: list[int]
    answer_start: int


@dataclass
class TrainingSet:
    """Encoded rows and what truncation did to them.

    Attributes:
        rows: one a row of the data, in its order.
        order: index into ``rows`` for every item of an epoch; rows of small classes occur more than once.
        shortened: number of rows whose text was shortened.
        order_of: the order of an epoch; as long for each. None: all are alike.
    """

    rows: list[TrainingRow]
    order: list[int]
    shortened: int
    order_of: Callable[[int], list[int]] | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Takes the order of an epoch that begins or goes on."""
        if self.order_of is not None:
            self.order = self.order_of(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> TrainingRow:
        return self.rows[self.order[index]]


def build_training_set(
    examples: Sequence[Example], encoder: PromptEncoder, *, oversample: float = 0.0, seed: int = 0
) -> TrainingSet:
    """Encodes rows; no answer is ever cut.

    Args:
        examples: labelled rows.
        encoder: the encoder that prediction will use too.
        oversample: a class of n rows is seen ``(largest / n) ** oversample`` times an epoch; 0 is once.
        seed: of the turn of the rows behind a fractional number of times.
    """
    rows, shortened = [], 0
    for example in examples:
        prompt, answer = encoder.encode_training(example)
        rows.append(TrainingRow([*prompt.input_ids, *answer], len(prompt.input_ids)))
        shortened += prompt.truncated
    labels = [encoder.labels.canonical(e.label) for e in examples if e.label is not None]
    order_of = partial(oversampled_order, labels, oversample, seed)
    return TrainingSet(rows, order_of(0), shortened, order_of)


def oversampled_order(labels: Sequence[str], power: float, seed: int, epoch: int = 0) -> list[int]:
    """Indices of one epoch: each class of n rows occurs about ``n * (largest / n) ** power`` times.

    The rows behind a fraction change from epoch to epoch, in turn, so that over the epochs all are seen as often.
    """
    counts = Counter(labels)
    largest = max(counts.values())
    draw = random.Random(seed)  # noqa: S311 - sampling, not secrets
    order: list[int] = []
    for name, count in counts.items():
        members = [i for i, label in enumerate(labels) if label == name]
        total = round(count * (largest / count) ** power)
        whole, rest = divmod(total, count)
        turn = draw.sample(members, count)
        order += members * whole + [turn[(epoch * rest + i) % count] for i in range(rest)]
    return sorted(order)
