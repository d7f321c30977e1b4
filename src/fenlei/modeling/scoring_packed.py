"""Scoring with rows one after the other in one sequence, behind keys and values that were computed once for all.

    [prefix: computed before] [rest of row 1] [its tree] [rest of row 2] [its tree] ...

Shape letters: N tokens of the sequence, P shared ones, B rows of a block, R tokens of a row's rest, M nodes of its
tree.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fenlei.modeling.packed import (
    AttentionBlock,
    BlockSize,
    KeysAndValues,
    PackedLayout,
    PackedState,
    alike,
    causal_blocks,
)
from fenlei.modeling.scoring_parts import Part, read_places, sum_paths
from fenlei.modeling.tree import ancestors

if TYPE_CHECKING:
    import numpy as np
    import torch

MOST_PREFIX_BYTES = 512 << 20


class PackedScorer:
    """Scores parts that begin with the same tokens.

    Args:
        model: a causal language model, with or without adapter, see :func:`fenlei.modeling.packed.can_pack`.
        fused: replace slow parts of the model by faster ones with the same results.
        prepacked: of those, weights laid out for the processor once, see :mod:`fenlei.modeling.prepacked`.
    """

    def __init__(self, model: Any, *, fused: bool = True, prepacked: bool = True) -> None:
        self.model, self.fused, self.prepacked = model, fused, prepacked and fused
        self.state = PackedState.of(model)
        self.prefixes = PrefixCache(self)
        self._size = BlockSize.of(model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def prepare(self) -> None:
        """Before the first pass: fuses the model if nobody has, and forgets prefixes of other weights."""
        if not self.state.fused:
            from fenlei.config import SpeedConfig
            from fenlei.modeling.fuse import fuse

            # The adapter's products in the model's own number format: a choice by speed, as training makes it, could
            # differ between two processes, and so would their results.
            dtype = self.model.get_input_embeddings().weight.dtype
            off = {name: False for name in ("fused_lora", "fused_norm", "last_layer")}
            fuse(self.model, SpeedConfig(**({} if self.fused else off)), self.state, dtype, head=self.fused)
        # a model that is being trained needs its memory for that
        if self.prepacked and not any(p.requires_grad for p in self.model.parameters()):
            from fenlei.modeling.prepacked import prepack

            prepack(self.model)
            self.prepacked = False  # weights that change from here on are simply not found there
        self.prefixes.forget_if_changed()

    def score(self, parts: Sequence[Part], prefix: Sequence[int] = ()) -> list[np.ndarray]:
        """Scores of the candidates of each part, ``(number of candidates,)``.

        Args:
            parts: rows of one forward pass.
            prefix: token ids that all prompts begin with; shorter than the shortest prompt.
        """
        import torch

        past = self.prefixes.get(tuple(prefix)) if prefix else None
        ids, layout, kept = pack_parts(parts, len(prefix), self._size)
        places, tokens = read_places(parts)
        values = self._forward(ids, layout, kept, (torch.tensor(places), torch.tensor(tokens)), past)
        return sum_paths(values.double().cpu().numpy(), parts)

    def _forward(
        self,
        ids: list[int],
        layout: PackedLayout,
        kept: list[int],
        pairs: tuple[torch.Tensor, torch.Tensor] | None,
        past: KeysAndValues | None,
        remember: KeysAndValues | None = None,
    ) -> torch.Tensor:
        """Log-probabilities of the pairs, ``(m,)``."""
        import torch

        device = self.device
        layout = layout.to(device)
        places = torch.tensor(kept, device=device)
        keep = torch.zeros(1, len(ids), dtype=torch.bool, device=device)
        keep[0, places] = True
        if pairs is not None:
            pairs = (pairs[0].to(device), pairs[1].to(device))
        in_head = pairs is not None and bool(self.state.fused.get("head"))
        narrow = places if self.state.fused.get("last_layer") else None
        with (
            torch.inference_mode(),
            self.state.running(layout, narrow, pairs=pairs if in_head else None, past=past, remember=remember),
        ):
            found = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=layout.positions[None],
                logits_to_keep=keep,
                use_cache=False,
            ).logits
            if pairs is None or in_head:
                return found
            return torch.log_softmax(found.float(), dim=-1)[pairs[0], pairs[1]]

    def keys_and_values(self, prefix: Sequence[int]) -> KeysAndValues:
        """Keys and values of a prefix, for :meth:`score`."""
        import torch

        blocks = causal_blocks([0], [len(prefix)], 0, self._size)
        layout = PackedLayout(0, (len(prefix),), torch.arange(len(prefix)), blocks)
        remember: KeysAndValues = {}
        self._forward(list(prefix), layout, [len(prefix) - 1], None, None, remember)
        return {module: (key.contiguous(), value.contiguous()) for module, (key, value) in remember.items()}


class PrefixCache:
    """Keys and values of the prefixes used last, while the weights stay what they are.

    Args:
        scorer: computes them.

    Attributes:
        most_bytes: what they may take together; the one used last is always kept.
    """

    def __init__(self, scorer: PackedScorer) -> None:
        self._scorer = weakref.proxy(scorer)  # it holds the cache, and a circle would outlive the model's last user
        self.most_bytes = MOST_PREFIX_BYTES
        self._known: dict[tuple[int, ...], KeysAndValues] = {}
        self._weights: Any = None

    def __contains__(self, prefix: tuple[int, ...]) -> bool:
        return prefix in self._known

    def get(self, prefix: tuple[int, ...]) -> KeysAndValues:
        """Keys and values of a prefix; computed at the first call."""
        found = self._known.pop(prefix, None)
        if found is None:
            found = self._scorer.keys_and_values(prefix)
        self._known[prefix] = found  # the last one used stands last
        size = sum(_bytes(entry) for entry in self._known.values())
        while size > self.most_bytes and len(self._known) > 1:
            size -= _bytes(self._known.pop(next(iter(self._known))))
        return found

    def forget_if_changed(self) -> None:
        """Drops everything when the weights, or the adapter in use, are not those of the last call."""
        weights = _weights_in_use(self._scorer.model)
        if weights is None or weights != self._weights:
            self._known.clear()
        self._weights = weights


def _weights_in_use(model: Any) -> Any:
    """Something that changes with every change of the weights or of the adapter; None while they are being trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    marks: list[Any] = []
    modules = [model]
    # before every pass, so not with `parameters()`, which takes twice as long
    while modules:
        module = modules.pop()
        modules += [child for child in module._modules.values() if child is not None]
        for p in module._parameters.values():
            if p is None:
                continue
            if p.requires_grad:
                return None
            # every change in place raises a tensor's version; other tensors have other addresses
            marks.append((p.data_ptr(), 0 if p.is_inference() else p._version))
        if isinstance(module, BaseTunerLayer):
            marks.append((tuple(module.active_adapters), module.disable_adapters))
    return hash(tuple(marks))


def _bytes(entry: KeysAndValues) -> int:
    return sum(key.nbytes + value.nbytes for key, value in entry.values())


def pack_parts(parts: Sequence[Part], shared: int, size: BlockSize) -> tuple[list[int], PackedLayout, list[int]]:
    """Lays parts out behind ``shared`` tokens that were computed before.

    Args:
        parts: rows whose prompts are longer than ``shared``.
        shared: P.
        size: of the blocks of attention.

    Returns:
        The token ids, the layout, and the places whose logits are read: the last one of each prompt and the nodes of
        its tree.
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    starts, rests, forks = [], [], []
    for part in parts:
        nodes, length = part.tree.node_count - 1, len(part.prompt)
        starts.append(len(ids))
        ids += part.prompt[shared:]
        ids += part.tree.tokens
        kept += range(len(ids) - nodes - 1, len(ids))
        positions += range(shared, length)
        positions += [length - 1 + depth for depth in part.tree.depths]
        # a chain of nodes is plain causal text
        forks.append(part.tree.forks)
        rests.append(length - shared + (0 if part.tree.forks else nodes))
    blocks = causal_blocks(starts, rests, shared, size, shared)
    forking = [i for i, yes in enumerate(forks) if yes]
    for members in _alike_trees([parts[i] for i in forking], [rests[i] for i in forking], shared, size):
        chosen = [forking[m] for m in members]
        blocks.append(_tree_block([parts[i] for i in chosen], [starts[i] for i in chosen], shared))
    return ids, PackedLayout(0, tuple(rests), torch.tensor(positions), blocks), kept


def _alike_trees(parts: Sequence[Part], rests: Sequence[int], shared: int, size: BlockSize) -> list[list[int]]:
    """Rows whose trees one block may hold: by the lengths of their rests, and so that the scores stay few."""
    if not parts:
        return []
    most = max(part.tree.node_count for part in parts)
    groups = []
    for members in alike(rests, shared, size):
        longest = rests[members[0]]
        count = max(1, size.scores // (size.heads * most * (shared + longest + most)))
        groups += [members[i : i + count] for i in range(0, len(members), count)]
    return groups


def _tree_block(parts: Sequence[Part], starts: Sequence[int], shared: int) -> AttentionBlock:
    """The attention of forking trees: each node looks at its prompt, its ancestors and itself."""
    import torch

    rests = torch.tensor([len(part.prompt) - shared for part in parts])[:, None]
    counts = torch.tensor([part.tree.node_count - 1 for part in parts])[:, None]
    first = torch.tensor(starts)[:, None]
    longest, most = int(rests.max()), int(counts.max())
    in_rest = torch.arange(longest)[None] < rests  # (B, R)
    in_tree = torch.arange(most)[None] < counts  # (B, M)
    queries = (first + rests + torch.arange(most)[None]) * in_tree
    rest_places = (first + torch.arange(longest)[None]) * in_rest
    prefix = torch.arange(shared).expand(len(parts), -1)
    keys = torch.cat([prefix, rest_places + shared, queries + shared], dim=1)
    family = torch.zeros(len(parts), most, most, dtype=torch.bool)
    depths = torch.zeros(len(parts), most, dtype=torch.long)
    for b, part in enumerate(parts):
        count = part.tree.node_count - 1
        family[b, :count, :count] = torch.from_numpy(ancestors(part.tree))
        depths[b, :count] = torch.tensor(part.tree.depths)
    seen = torch.cat([torch.cat([torch.ones_like(prefix, dtype=torch.bool), in_rest], 1)[:, None].expand(-1, most, -1),
                      family], dim=2)  # fmt: skip
    seen = seen | ~in_tree[:, :, None]  # padding looks anywhere: a row of no keys would be NaN
    node_positions = shared + rests - 1 + depths
    key_positions = torch.cat([prefix, shared + torch.arange(longest).expand(len(parts), -1), node_positions], dim=1)
    valid = in_tree.flatten().nonzero().flatten()
    return AttentionBlock(
        queries,
        keys,
        valid,
        queries.flatten()[valid],
        seen.contiguous(),
        node_positions[:, :, None] - key_positions[:, None],
    )
