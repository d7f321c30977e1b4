"""Labelled rows as token ids, and micro-batches with the loss at the answer only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fenlei.config import RunConfig
from fenlei.data.example import Example
from fenlei.errors import TrainingError
from fenlei.prompting import PromptEncoder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingRow:
    """One row ready to train on: ids of prompt and answer, and where the answer begins."""

    input_ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class TrainingSet:
    """Encoded rows and what truncation did to them.

    Attributes:
        rows: one a row of the data, in its order.
        order: index into ``rows`` for every item of an epoch; rows of small classes occur more than once.
        shortened: number of rows whose text was shortened.
    """

    rows: list[TrainingRow]
    order: list[int]
    shortened: int

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
        seed: draws the rows behind a fractional number of times.
    """
    rows, shortened = [], 0
    for example in examples:
        prompt, answer = encoder.encode_training(example)
        rows.append(TrainingRow([*prompt.input_ids, *answer], len(prompt.input_ids)))
        shortened += prompt.truncated
    labels = [encoder.labels.canonical(e.label) for e in examples if e.label is not None]
    return TrainingSet(rows, oversampled_order(labels, oversample, seed), shortened)


def oversampled_order(labels: Sequence[str], power: float, seed: int) -> list[int]:
    """Indices of one epoch: each class of n rows occurs about ``n * (largest / n) ** power`` times."""
    counts = Counter(labels)
    largest = max(counts.values())
    draw = random.Random(seed)  # noqa: S311 - sampling, not secrets
    order: list[int] = []
    for name, count in counts.items():
        members = [i for i, label in enumerate(labels) if label == name]
        total = round(count * (largest / count) ** power)
        whole, rest = divmod(total, count)
        order += members * whole + draw.sample(members, rest)
    return sorted(order)


def micro_batch_size(config: RunConfig, device: torch.device) -> int:
    """Rows a forward pass: as set, else 1 on CPU and, on a GPU, the largest divisor of the batch up to 4.

    Raises:
        TrainingError: the batch is no multiple of the size that was set, or this device cannot be trained on.
    """
    import torch

    train = config.train
    if device.type == "cuda" and (torch.cuda.device_count() > 1 or device.index):
        # the Trainer would wrap the model in nn.DataParallel, which tears the flat label tensors apart
        raise TrainingError(
            f"{torch.cuda.device_count()} GPUs are visible and training uses one: leave model.device=auto and choose "
            f"by CUDA_VISIBLE_DEVICES={device.index or 0}"
        )
    if train.micro_batch_size is None:
        most = 1 if device.type == "cpu" else 4
        return max(n for n in range(1, most + 1) if train.batch_size % n == 0)
    if train.batch_size % train.micro_batch_size:
        raise TrainingError(
            f"train.batch_size={train.batch_size} is not a multiple of "
            f"train.micro_batch_size={train.micro_batch_size}; change one of them"
        )
    return train.micro_batch_size


class AnswerCollator:
    """Pads rows on the right and marks the positions whose logits predict an answer token.

    The batch holds ``input_ids`` (B, T), ``logits_to_keep`` (B, T) bool with N true entries, and ``shift_labels`` and
    ``labels``, both (N,): the token that follows each kept position. The model then computes N rows of logits
    instead of B x T, and the loss over them equals the loss over all positions with the prompt masked out.

    No attention mask is needed: with padding on the right, causal attention never looks at it.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[TrainingRow]) -> dict[str, Any]:
        """Collates rows into one micro-batch of tensors."""
        import torch

        width = max(len(row.input_ids) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        keep = torch.zeros((len(rows), width), dtype=torch.bool)
        targets: list[torch.Tensor] = []
        for b, row in enumerate(rows):
            tokens = torch.tensor(row.input_ids)
            ids[b, : len(tokens)] = tokens
            keep[b, row.answer_start - 1 : len(tokens) - 1] = True
            targets.append(tokens[row.answer_start :])
        flat = torch.cat(targets)
        return {"input_ids": ids, "logits_to_keep": keep, "shift_labels": flat, "labels": flat}
