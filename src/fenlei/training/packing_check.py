"""Whether a model's rows may be packed: held against separate rows before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from fenlei.training.dataset import TrainingRow
from fenlei.training.microbatches import shared_length

# of a model's first trained parameters: their gradients have come through the attention of every layer
_PARAMETERS = 16


class PackingCheck:
    """Two rows (or one), packed and apart.

    Args:
        rows: the rows.
        packed: the losses of packed rows, ``(n,)``, and how many of their first tokens are computed before.
        separate: the losses of rows each alone.
    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        packed: Callable[..., AbstractContextManager[torch.Tensor]],
        separate: Callable[[Sequence[TrainingRow]], torch.Tensor],
    ) -> None:
        self._rows, self._packed, self._separate = list(rows), packed, separate

    def passes(self, model: Any, *, beginning: bool, gradients: bool) -> bool:
        """Whether packed rows have the losses of separate ones and do not notice their neighbours.

        Args:
            model: the model, in evaluation mode.
            beginning: compare also with the common beginning computed before, as steps of several passes do.
            gradients: compare gradients too.
        """
        bfloat16 = model.get_input_embeddings().weight.dtype != torch.float32
        relative, absolute = (0.05, 0.1) if bfloat16 else (1e-3, 1e-3)
        with torch.no_grad():
            apart, together = self._separate(self._rows), self._losses(self._rows)
            shared = shared_length(self._rows)
            found = [together, self._losses(self._rows, shared)] if beginning and shared else [together]
            if not all(torch.allclose(f, apart, rtol=relative, atol=absolute) for f in found):
                return False
            # of the same shapes: what is left is no rounding, so that a small leak shows in bfloat16 too
            if len(self._rows) == 2 and not self._deaf_to_neighbours(together, 0):
                return False
            if len(found) == 2 and len(self._rows) == 2 and not self._deaf_to_neighbours(found[1], shared):
                return False
        return not gradients or self._same_gradients(model, 0.2 if bfloat16 else 1e-3)

    def _losses(self, rows: Sequence[TrainingRow], before: int = 0) -> torch.Tensor:
        with self._packed(rows, before) as losses:
            return losses

    def _deaf_to_neighbours(self, losses: torch.Tensor, before: int) -> bool:
        """Whether the second row's losses stay when the first row has other tokens behind the common ones."""
        first, second = self._rows
        same = shared_length(self._rows) + 1
        other = [second.input_ids[-1]] * (len(first.input_ids) - same)
        neighbour = replace(first, input_ids=[*first.input_ids[:same], *other])
        count = len(second.input_ids) - second.answer_start
        found = self._losses([neighbour, second], before)
        return torch.allclose(found[-count:], losses[-count:], rtol=1e-3, atol=1e-3)

    def _same_gradients(self, model: Any, tolerance: float) -> bool:
        parameters = [p for p in model.parameters() if p.requires_grad][:_PARAMETERS]
        expected = torch.autograd.grad(self._separate(self._rows).sum(), parameters, allow_unused=True)
        with self._packed(self._rows) as losses:
            found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        size = apart = 0.0
        for theirs, ours in zip(expected, found, strict=True):
            if (theirs is None) != (ours is None):
                return False
            if theirs is not None and ours is not None:
                size += float(theirs.float().square().sum())
                apart += float((ours.float() - theirs.float()).square().sum())
        return apart <= tolerance**2 * size
