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

    from fenlei.modeling.varlen import Segments

IMPLEMENTATION = "fenlei_packed"
# of each attention module, by id: keys and values (Z, P, D), rotated to their positions
KeysAndValues = dict[int, tuple["torch.Tensor", "torch.Tensor"]]
_PACKED_LAYERS = {"full_attention", "sliding_attention"}
# Rows of a block are padded to its longest; a shorter row than this share of it begins a block of its own.
_SHORTEST_IN_BLOCK = 0.75


@dataclass(frozen=True)
class BlockSize:
    """How large a block of attention may become.

    Attributes:
        heads: H.
        scores: most attention scores of a block, all heads: on a CPU, more would leave the processor's cache.
        queries: most queries of a row in a block. A longer row is cut into several, so that fewer scores are computed
            that causality hides.
    """

    heads: int = 16
    scores: int = 1 << 22
    queries: int = 128

    @classmethod
    def of(cls, model: Any) -> BlockSize:
        """The size that suits a model where it is."""
        heads = int(getattr(model.config.get_text_config(), "num_attention_heads", cls.heads))
        if next(model.parameters()).device.type == "cpu":
            return cls(heads)
        return cls(heads, scores=1 << 28, queries=1 << 20)  # few and large: every kernel has to be started


@dataclass(frozen=True)
class AttentionBlock:
    """Rows whose attention is computed together, padded on the right.

    Attributes:
        queries: places of the queries in the packed sequence, ``(B, S)``; padding points at place 0.
        keys: places of the keys, ``(B, K)``. Where the shared tokens are not part of the sequence but were computed
            before (:meth:`PackedState.running`), they come first and the sequence's own places count from P.
        valid: indices into the flattened queries that are no padding, ``(n,)``.
        places: ``queries.flatten()[valid]``, ``(n,)``.
        seen: which query looks at which key, ``(B, S, K)`` bool; None: the last S keys are the queries, and each looks
            at all up to itself.
        distance: position of the query minus that of the key, ``(B, S, K)``; given with ``seen``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    valid: torch.Tensor
    places: torch.Tensor
    seen: torch.Tensor | None = None
    distance: torch.Tensor | None = None

    def to(self, device: torch.device) -> AttentionBlock:
        """The same block on a device."""
        parts = (self.queries, self.keys, self.valid, self.places, self.seen, self.distance)
        return AttentionBlock(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


@dataclass
class PackedLayout:
    """Where everything is in a packed sequence.

    Attributes:
        shared: P, number of shared tokens in the sequence.
        lengths: number of tokens of each row after the shared ones.
        positions: position of each token in its own row, ``(N,)``.
        blocks: the attention to compute.
        segments: the same for a kernel that takes rows of different lengths; None: block by block.
    """

    shared: int
    lengths: tuple[int, ...]
    positions: torch.Tensor
    blocks: list[AttentionBlock]
    _biases: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    segments: Segments | None = None

    def to(self, device: torch.device) -> PackedLayout:
        """The same layout on a device."""
        blocks = [block.to(device) for block in self.blocks]
        return PackedLayout(self.shared, self.lengths, self.positions.to(device), blocks)

    @property
    def starts(self) -> list[int]:
        """Place of the first token of each row after the shared ones."""
        return [self.shared + sum(self.lengths[:i]) for i in range(len(self.lengths))]

    def bias(self, block: AttentionBlock, window: int | None) -> torch.Tensor:
        """What is added to the scores of a block: 0 where a query may look, -inf where not, float32.

        Returns:
            ``(1, S, K)``, or ``(B, S, K)`` for a block with a mask of its own.
        """
        import torch

        size, count = block.queries.shape[1], block.keys.shape[1]
        # a layout lives as long as its blocks: their ids are not used again meanwhile
        own = id(block) if block.seen is not None else 0
        key = (size, count, window or 0, own)
        if key not in self._biases:
            device = block.queries.device
            if block.seen is not None and block.distance is not None:
                hidden, distance = ~block.seen, block.distance
            else:
                query = torch.arange(count - size, count, device=device)[:, None]
                distance = (query - torch.arange(count, device=device)[None])[None]
                hidden = distance < 0
            if window is not None:
                hidden = hidden | (distance >= window)
            self._biases[key] = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))
        return self._biases[key]


def pack(
    rows: Sequence[Sequence[int]], shared: int, size: BlockSize | None = None, *, before: bool = False
) -> tuple[list[int], PackedLayout]:
    """Lays rows out behind their first ``shared`` tokens, which must be equal in all of them.

    Args:
        rows: token ids of each row; each longer than ``shared``.
        shared: P; 0 for rows that have nothing in common.
        size: of the blocks of attention.
        before: the shared tokens are computed before and are no part of the sequence.

    Returns:
        The packed token ids and the layout.
    """
    import torch

    size = size or BlockSize()
    inside = 0 if before else shared
    rest = [list(row[shared:]) for row in rows]
    ids = list(rows[0][:inside])
    positions = list(range(inside))
    starts = []
    for part in rest:
        starts.append(len(ids))
        ids += part
        positions += range(shared, shared + len(part))
    blocks = causal_blocks([0], [inside], 0, size) if inside else []
    blocks += causal_blocks(starts, [len(part) for part in rest], shared, size, shared - inside)
    return ids, PackedLayout(inside, tuple(len(p) for p in rest), torch.tensor(positions), blocks)


def causal_blocks(
    starts: Sequence[int], lengths: Sequence[int], shared: int, size: BlockSize, before: int = 0
) -> list[AttentionBlock]:
    """The attention of rows on the shared tokens and, causally, on themselves.

    Args:
        starts: place of each row's first token.
        lengths: number of tokens of each row.
        shared: P; they are the first tokens of the sequence, or were computed before.
        size: of the blocks.
        before: number of tokens that were computed before: P or 0.
    """
    blocks = []
    for members in alike(lengths, shared, size):
        first, long = [starts[i] for i in members], [lengths[i] for i in members]
        pieces = -(-max(long) // size.queries)
        ends = [max(long) * (piece + 1) // pieces for piece in range(pieces)]
        for begin, end in zip([0, *ends], ends, strict=False):
            blocks.append(_causal_block(first, long, shared, before, begin, end))
    return blocks


def alike(lengths: Sequence[int], shared: int, size: BlockSize) -> Iterator[list[int]]:
    """Groups of rows, by index, that one block may hold: of near-equal length, and not too many scores."""
    members: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if members:
            longest = lengths[members[0]]
            scores = (len(members) + 1) * size.heads * min(longest, size.queries) * (shared + longest)
            if lengths[i] < _SHORTEST_IN_BLOCK * longest or scores > size.scores:
                yield members
                members = []
        members.append(i)
    if members:
        yield members


def _causal_block(
    starts: Sequence[int], lengths: Sequence[int], shared: int, before: int, begin: int, end: int
) -> AttentionBlock:
    """The queries from ``begin`` to ``end`` of each row, and the keys that they may look at."""
    import torch

    inside = torch.arange(end)[None] < torch.tensor(lengths)[:, None]
    places = (torch.arange(end)[None] + torch.tensor(starts)[:, None]) * inside
    keys = torch.cat([torch.arange(shared).expand(len(starts), -1), places + before], dim=1)
    queries = places[:, begin:]
    valid = inside[:, begin:].flatten().nonzero().flatten()
    return AttentionBlock(queries, keys, valid, queries.flatten()[valid])


class PackedState:
    """What the patched parts of one model look at while a packed sequence runs through it.

    A model has one, whoever asks: see :meth:`of`.

    Attributes:
        layout: the layout; None outside of :meth:`running`.
        kept: places whose last hidden state is used, ``(n,)``; None: all are.
        pairs: (index of a kept place, token) as two tensors ``(m,)``; given, the head returns log-probabilities.
        fused: which parts of the model are replaced at the moment, see :func:`fenlei.modeling.fuse.fuse`.
    """

    def __init__(self, model: Any) -> None:
        self.layout: PackedLayout | None = None
        self.kept: torch.Tensor | None = None
        self.pairs: tuple[torch.Tensor, torch.Tensor] | None = None
        self.fused: dict[str, int] = {}
        self._past: KeysAndValues | None = None
        self._seen: KeysAndValues | None = None
        found = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
        self._configs = [c for c in found.values() if hasattr(c, "_attn_implementation")]
        register()
        for module in attention_modules(model):
            module.fenlei_packed = self

    @classmethod
    def of(cls, model: Any) -> PackedState:
        """The state of a model; made at the first call."""
        found = (getattr(module, "fenlei_packed", None) for module in attention_modules(model))
        return next((state for state in found if state is not None), None) or cls(model)

    @contextmanager
    def running(
        self,
        layout: PackedLayout,
        kept: torch.Tensor | None = None,
        *,
        pairs: tuple[torch.Tensor, torch.Tensor] | None = None,
        past: KeysAndValues | None = None,
        remember: KeysAndValues | None = None,
    ) -> Iterator[None]:
        """Forward and backward of one packed sequence happen inside.

        The backward pass too: activation checkpointing runs the forward pass again in it.

        Args:
            layout: where everything is.
            kept: see the attribute.
            pairs: see the attribute.
            past: keys and values of shared tokens that were computed before.
            remember: gets the keys and values of this sequence.
        """
        before = [c._attn_implementation for c in self._configs]
        self.layout, self.kept, self.pairs = layout, kept, pairs
        self._past, self._seen = past, remember
        for config in self._configs:
            config._attn_implementation = IMPLEMENTATION
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name
            self.layout = self.kept = self.pairs = self._past = self._seen = None

    def with_past(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``(Z, N, D)`` of a layer behind those that were computed before."""
        if self._seen is not None:
            self._seen[id(module)] = (key, value)
        if self._past is None:
            return key, value
        import torch

        old_key, old_value = self._past[id(module)]
        return torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1)


def attention_modules(model: Any) -> list[Any]:
    """The attention modules of a decoder: those that hold the projections of queries, keys and values."""
    return [m for m in model.modules() if all(hasattr(m, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))]


def can_pack(model: Any) -> bool:
    """Whether a model's attention looks as if packed rows could go through it; a comparison has to confirm it.

    Layers that carry a state from token to token (linear attention, convolutions) or look at chunks would carry it from
    row to row.
    """
    config = model.config.get_text_config()
    return (
        bool(attention_modules(model))
        and set(getattr(config, "layer_types", None) or ()) <= _PACKED_LAYERS
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and not getattr(config, "attention_dropout", 0.0)
    )


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

    state: PackedState = module.fenlei_packed
    layout = state.layout
    if layout is None or attention_mask is not None or dropout or softcap:
        raise RuntimeError("packed attention takes no mask, dropout or capped scores")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    keys, values = state.with_past(module, key[0], value[0])
    return attend(query[0], keys, values, layout, scale, sliding_window).unsqueeze(0), None
