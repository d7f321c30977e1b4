"""Several rows in one forward pass, with their common beginning computed once.

A packed sequence holds P shared tokens and, after them, the rest of each row:

    [shared tokens] [rest of row 1] [rest of row 2] ...

Each rest continues right after the shared tokens (its positions start at P) and attends to them and to itself, as if
its row stood alone. All other layers treat tokens one by one, so nothing is padded there and the shared tokens cost one
row's work. Losses and gradients are those of the separate rows: the gradients of the shared tokens are the sums over
the rows.

Shape letters: N tokens of the packed sequence, P shared ones, B rows of a block, S queries and K keys of a row (longest
of the block), H query heads, G query heads a key head, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "fenlei_packed"
# Rows of a block are padded to its longest; a shorter row than this share of it begins a block of its own.
_SHORTEST_IN_BLOCK = 0.75
# Most attention scores (all heads) of one block; more would leave the processor's cache.
_MOST_SCORES = 1 << 22


@dataclass(frozen=True)
class AttentionBlock:
    """Rows whose attention is computed together, padded on the right.

    Attributes:
        queries: places of the queries in the packed sequence, ``(B, S)``; padding points at place 0.
        keys: places of the keys, ``(B, K)``; the first K - S are the shared tokens.
        valid: indices into the flattened queries that are no padding, ``(n,)``.
        places: ``queries.flatten()[valid]``, ``(n,)``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    valid: torch.Tensor
    places: torch.Tensor


@dataclass
class PackedLayout:
    """Where everything is in a packed sequence.

    Attributes:
        shared: P, number of shared tokens.
        lengths: number of tokens of each row after the shared ones.
        positions: position of each token in its own row, ``(N,)``.
        blocks: the attention to compute.
    """

    shared: int
    lengths: tuple[int, ...]
    positions: torch.Tensor
    blocks: list[AttentionBlock]
    _biases: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> PackedLayout:
        """The same layout on a device."""
        blocks = [
            AttentionBlock(b.queries.to(device), b.keys.to(device), b.valid.to(device), b.places.to(device))
            for b in self.blocks
        ]
        return PackedLayout(self.shared, self.lengths, self.positions.to(device), blocks)

    @property
    def starts(self) -> list[int]:
        """Place of the first token of each row after the shared ones."""
        return [self.shared + sum(self.lengths[:i]) for i in range(len(self.lengths))]

    def bias(self, block: AttentionBlock, window: int | None) -> torch.Tensor:
        """What is added to the scores of a block: 0 where a query may look, -inf where not, ``(S, K)`` float32."""
        import torch

        size, count = block.queries.shape[1], block.keys.shape[1]
        key = (size, count, window)
        if key not in self._biases:
            device = block.queries.device
            query = torch.arange(count - size, count, device=device)[:, None]
            distance = query - torch.arange(count, device=device)[None]
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            self._biases[key] = torch.zeros(size, count, device=device).masked_fill_(hidden, float("-inf"))
        return self._biases[key]


def pack(rows: Sequence[Sequence[int]], shared: int, heads: int = 16) -> tuple[list[int], PackedLayout]:
    """Lays rows out behind their first ``shared`` tokens, which must be equal in all of them.

    Args:
        rows: token ids of each row; each longer than ``shared``.
        shared: P; 0 for rows that have nothing in common.
        heads: number of query heads, for the size of blocks.

    Returns:
        The packed token ids and the layout.
    """
    import torch

    rest = [list(row[shared:]) for row in rows]
    ids = list(rows[0][:shared])
    positions = list(range(shared))
    starts = []
    for part in rest:
        starts.append(len(ids))
        ids += part
        positions += range(shared, shared + len(part))
    blocks = [_block([0], [shared], 0)] if shared else []
    for members in _alike([len(part) for part in rest], shared, heads):
        blocks.append(_block([starts[i] for i in members], [len(rest[i]) for i in members], shared))
    return ids, PackedLayout(shared, tuple(len(p) for p in rest), torch.tensor(positions), blocks)


def _alike(lengths: list[int], shared: int, heads: int) -> Iterator[list[int]]:
    members: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if members:
            longest = lengths[members[0]]
            scores = (len(members) + 1) * heads * longest * (shared + longest)
            if lengths[i] < _SHORTEST_IN_BLOCK * longest or scores > _MOST_SCORES:
                yield members
                members = []
        members.append(i)
    if members:
        yield members


def _block(starts: list[int], lengths: list[int], shared: int) -> AttentionBlock:
    import torch

    size = max(lengths)
    inside = torch.arange(size)[None] < torch.tensor(lengths)[:, None]
    queries = (torch.arange(size)[None] + torch.tensor(starts)[:, None]) * inside
    keys = torch.cat([torch.arange(shared).expand(len(starts), -1), queries], dim=1)
    valid = inside.flatten().nonzero().flatten()
    return AttentionBlock(queries, keys, valid, queries.flatten()[valid])


class PackedState:
    """What the patched parts of one model look at while a packed sequence runs through it.

    Args:
        model: a causal language model, with or without adapter.

    Attributes:
        layout: the layout; None outside of :meth:`running`.
        kept: places whose last hidden state is used, ``(n,)``; None: all are.
        targets: token that follows each kept place, ``(n,)``; given, the language-model head returns losses.
    """

    def __init__(self, model: Any) -> None:
        self.layout: PackedLayout | None = None
        self.kept: torch.Tensor | None = None
        self.targets: torch.Tensor | None = None
        found = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
        self._configs = [c for c in found.values() if hasattr(c, "_attn_implementation")]
        register()
        for module in attention_modules(model):
            module.fenlei_packed = self

    @contextmanager
    def running(
        self, layout: PackedLayout, kept: torch.Tensor | None = None, targets: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Forward and backward of one packed sequence happen inside.

        The backward pass too: activation checkpointing runs the forward pass again in it.
        """
        before = [c._attn_implementation for c in self._configs]
        self.layout, self.kept, self.targets = layout, kept, targets
        for config in self._configs:
            config._attn_implementation = IMPLEMENTATION
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name
            self.layout = self.kept = self.targets = None


def attention_modules(model: Any) -> list[Any]:
    """The attention modules of a decoder: those that hold the projections of queries, keys and values."""
    return [m for m in model.modules() if all(hasattr(m, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))]


def register() -> None:
    """Makes packed attention known to transformers, under a name that asks for no mask of its own."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface of transformers: ``(1, heads, N, D)`` in, ``(1, N, heads, D)`` out."""
    from fenlei.modeling.packed_attention import attend

    layout = module.fenlei_packed.layout
    if layout is None or attention_mask is not None or dropout or softcap:
        raise RuntimeError("packed attention takes no mask, dropout or capped scores")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend(query[0], key[0], value[0], layout, scale, sliding_window).unsqueeze(0), None
