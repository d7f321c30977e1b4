"""The rows of one optimizer step, divided into forward passes that fit a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fenlei.modeling.packed import BlockSize, PackedLayout, pack

if TYPE_CHECKING:
    import torch

    from fenlei.training.dataset import TrainingRow


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass.

    Attributes:
        input_ids: ``(1, N)`` packed, or ``(B, T)`` padded on the right.
        keep: places whose logits predict an answer token, bool, shape of ``input_ids``, n of them true.
        targets: the token after each kept place, ``(n,)``.
        layout: of a packed sequence; None for padded rows.
    """

    input_ids: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    layout: PackedLayout | None

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        layout = self.layout.to(device) if self.layout else None
        return MicroBatch(self.input_ids.to(device), self.keep.to(device), self.targets.to(device), layout)

    @property
    def kept(self) -> torch.Tensor:
        """Indices of the kept places in the flattened ids, ``(n,)``."""
        return self.keep.flatten().nonzero().flatten()


def split_rows(
    rows: Sequence[TrainingRow],
    tokens: int,
    most_rows: int | None = None,
    *,
    share: bool = True,
    packed: bool = True,
    before: int = 0,
) -> Iterator[list[TrainingRow]]:
    """Groups rows so that each group has at most ``tokens`` tokens; a longer row is alone.

    Args:
        rows: the rows of one optimizer step.
        tokens: the budget. A shared beginning counts once; padding counts.
        most_rows: most rows in a group.
        share: whether rows will share their beginning; rows with equal beginnings then come together.
        packed: whether rows will be packed; else rows of near-equal length come together.
        before: number of tokens at the beginning of every row that are computed once for all groups.
    """
    sharing = share and packed
    group: list[TrainingRow] = []
    for row in sorted(rows, key=lambda r: r.input_ids if sharing else -len(r.input_ids)):
        wider = [*group, row]
        size = tokens_of(wider, share=share, packed=packed, before=before)
        if group and (size > tokens or len(wider) > (most_rows or len(rows))):
            yield group
            group = [row]
        else:
            group = wider
    if group:
        yield group


def tokens_of(rows: Sequence[TrainingRow], *, share: bool = True, packed: bool = True, before: int = 0) -> int:
    """Tokens of one forward pass of rows; arguments as for :func:`split_rows`."""
    if not packed:
        return len(rows) * max(len(r.input_ids) for r in rows)
    shared = before or (shared_length(rows) if share else 0)
    return shared * (not before) + sum(len(r.input_ids) - shared for r in rows)


def shared_length(rows: Sequence[TrainingRow]) -> int:
    """Number of tokens that all rows begin with, the places that predict an answer excluded; 0 for one row."""
    if len(rows) < 2:
        return 0
    # what the first and the last in order have in common, all in between have in common too
    low, high = min(r.input_ids for r in rows), max(r.input_ids for r in rows)
    most = min(r.answer_start for r in rows) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def packed_batch(
    rows: Sequence[TrainingRow], *, share: bool = True, size: BlockSize | None = None, before: int = 0
) -> MicroBatch:
    """Rows one after the other behind their common beginning, or behind ``before`` tokens that were computed before."""
    import torch

    shared = before or (shared_length(rows) if share else 0)
    ids, layout = pack([r.input_ids for r in rows], shared, size, before=bool(before))
    keep = torch.zeros(1, len(ids), dtype=torch.bool)
    targets: list[int] = []
    for row, start in zip(rows, layout.starts, strict=True):
        first, end = start + row.answer_start - 1 - shared, start + len(row.input_ids) - 1 - shared
        keep[0, first:end] = True
        targets += row.input_ids[row.answer_start :]
    return MicroBatch(torch.tensor([ids]), keep, torch.tensor(targets), layout)


def padded_batch(rows: Sequence[TrainingRow], pad_id: int) -> MicroBatch:
    """Rows side by side, padded on the right, where causal attention never looks: no mask is needed."""
    import torch

    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    targets: list[int] = []
    for b, row in enumerate(rows):
        ids[b, : len(row.input_ids)] = torch.tensor(row.input_ids)
        keep[b, row.answer_start - 1 : len(row.input_ids) - 1] = True
        targets += row.input_ids[row.answer_start :]
    return MicroBatch(ids, keep, torch.tensor(targets), None)
