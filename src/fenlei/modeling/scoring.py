"""Exact log-probabilities of every candidate's answer, for many rows with as few forward passes as the model allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fenlei.config import InferenceConfig
from fenlei.errors import ModelError
from fenlei.modeling.packed import can_pack
from fenlei.modeling.scoring_packed import PackedScorer
from fenlei.modeling.scoring_padded import PaddedScorer
from fenlei.modeling.scoring_parts import Part, ScoreRequest, tree_of
from fenlei.modeling.tree import AnswerTree

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CandidateScorer", "ScoreRequest", "probabilities"]
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384
# a beginning that is shorter is not worth a forward pass of its own
_SHORTEST_PREFIX = 16
# of the two short rows that packed and padded passes are compared on
_CHECKED_PREFIX, _CHECKED_REST = 16, 24


class CandidateScorer:
    """Scores candidates by :mod:`fenlei.modeling.tree`'s definition, in one of three ways with equal results.

    - Where the answers' first tokens differ, one pass over the prompt scores all candidates.
    - Where they share beginnings, these are added to the pass as a tree, once each.
    - What prompts have in common at their beginning is computed once and looked at by all of them.

    Rows of a pass are packed one after the other. Whether a model's rows can be packed is found out at the first call
    by comparison with plain, padded rows, which are the way for all other models. There, a forking tree is one row a
    candidate where attention takes no mask of our own, or where a mask would hide a sliding window.

    Args:
        model: a causal language model, with or without adapter; put into evaluation mode while it scores.
        pad_id: fills shorter rows where rows are padded.
        settings: tokens of a forward pass, strict mode, and switches for measuring.
    """

    def __init__(self, model: Any, pad_id: int, settings: InferenceConfig | None = None) -> None:
        _require_logits_to_keep()
        self.model = model
        self.settings = settings or InferenceConfig()
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.batch_tokens = self.settings.batch_tokens or (_CPU_TOKENS if on_cpu else _GPU_TOKENS)
        self._padded = PaddedScorer(model, pad_id)
        self._packed: PackedScorer | None = None
        if self.settings.packed and can_pack(model):
            self._packed = PackedScorer(model, fused=self.settings.fused, prepacked=self.settings.prepacked)
        self._compared: set[tuple[bool, bool]] = set()

    def score(
        self, requests: Sequence[ScoreRequest], *, progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Log-probabilities, in the order of the requests; one array ``(number of candidates,)`` each.

        Args:
            requests: rows, each with its own candidates if need be.
            progress: called with the number of rows done after every batch.
        """
        import numpy as np

        parts = self._parts(requests)
        scores = [np.full(len(request.answers), np.nan) for request in requests]
        was_training = self.model.training
        self.model.eval()
        try:
            passes = self._packed_passes(parts, requests) if self._can_pack(parts) else self._padded_passes(parts)
            for batch, found in passes:
                for part, values in zip(batch, found, strict=True):
                    scores[part.row][list(part.candidates)] = values
                if progress is not None:
                    progress(sum(part.last for part in batch))
        finally:
            self.model.train(was_training)
        return scores

    def cost(self, request: ScoreRequest) -> int:
        """Tokens that a forward pass computes for a request whose beginning is computed already, 1 or more."""
        tree = tree_of(request.answers, self.settings.answers == "complete")
        return len(request.prompt) - self._shared(request) + tree.node_count - 1

    def beginning_cost(self, request: ScoreRequest) -> int:
        """Tokens at the beginning of a request that :meth:`cost` leaves out though they are not computed yet."""
        shared = self._shared(request)
        known = self._packed is not None and tuple(request.prompt[:shared]) in self._packed.prefixes
        return 0 if known else shared

    def _shared(self, request: ScoreRequest) -> int:
        return _prefix_length(request) if self.settings.share_prefix and self._packed is not None else 0

    def keep_prefixes(self, most_bytes: int) -> None:
        """How much memory the computed beginnings of prompts may take; the one used last is always kept."""
        if self._packed is not None:
            self._packed.prefixes.most_bytes = most_bytes

    def _parts(self, requests: Sequence[ScoreRequest]) -> list[Part]:
        complete = self.settings.answers == "complete"
        trees: dict[int, AnswerTree] = {}  # most rows have the very same answers, and hashing a thousand takes its time
        everyone: dict[int, tuple[int, ...]] = {}
        parts = []
        for row, request in enumerate(requests):
            key, count = id(request.answers), len(request.answers)
            if key not in trees:
                trees[key] = tree_of(request.answers, complete)
            if count not in everyone:
                everyone[count] = tuple(range(count))
            parts.append(Part(row, request.prompt, trees[key], everyone[count], last=True))
        return parts

    def _packed_passes(
        self, parts: Sequence[Part], requests: Sequence[ScoreRequest]
    ) -> Iterator[tuple[list[Part], list[np.ndarray]]]:
        assert self._packed is not None
        self._packed.prepare()
        for prefix, members in self._by_prefix(parts, requests):
            for batch in self._batches(members, len(prefix), padded=False):
                yield batch, self._packed.score(batch, prefix)

    def _padded_passes(self, parts: Sequence[Part]) -> Iterator[tuple[list[Part], list[np.ndarray]]]:
        rows = [chain for part in parts for chain in self._padded.chains(part)]
        for forks in (False, True):  # a mask of our own is slower, so rows that need one go apart
            members = [row for row in rows if row.tree.forks == forks]
            for batch in self._batches(members, 0, padded=True):
                yield batch, self._padded.score(batch)

    def _batches(self, parts: Sequence[Part], shared: int, *, padded: bool) -> Iterator[list[Part]]:
        """Parts of near-equal length under the token budget, longest first: memory is at its peak at once.

        Args:
            parts: rows that begin with the same ``shared`` tokens, which count nothing.
            shared: P.
            padded: each row counts as long as the longest.
        """
        batch: list[Part] = []
        used = 0
        for part in sorted(parts, key=lambda part: part.length, reverse=True):
            own = (batch[0] if batch and padded else part).length - shared
            if batch and (used + own > self.batch_tokens or self.settings.strict):
                yield batch
                batch, used, own = [], 0, part.length - shared
            batch.append(part)
            used += own
        if batch:
            yield batch

    def _by_prefix(
        self, parts: Sequence[Part], requests: Sequence[ScoreRequest]
    ) -> Iterator[tuple[tuple[int, ...], list[Part]]]:
        """Parts with the tokens that all prompts of a group begin with."""
        if not self.settings.share_prefix:
            yield (), list(parts)
            return
        groups: dict[tuple[int, ...], list[Part]] = {}
        for part, request in zip(parts, requests, strict=True):
            groups.setdefault(tuple(request.prompt[: _prefix_length(request)]), []).append(part)
        if self.settings.strict or len(groups) == 1:
            yield from groups.items()
            return
        # rows that bring their own candidates may be few a prefix: they share what all prompts have in common
        few = []
        for prefix, members in groups.items():
            if prefix and sum(part.length - len(prefix) for part in members) >= self.batch_tokens / 2:
                yield prefix, members
            else:
                few += members
        if few:
            common = _common_beginning([part.prompt for part in few])
            yield tuple(few[0].prompt[: common if common >= _SHORTEST_PREFIX and len(few) > 1 else 0]), few

    def _can_pack(self, parts: Sequence[Part]) -> bool:
        """Compares packed with padded rows: once each with plain and forking trees, below and beyond a sliding window.

        An architecture may do something unforeseen between tokens (recurrent layers, capped scores), and no list of
        models could keep up with that.
        """
        by_kind: dict[tuple[bool, bool], list[Part]] = {}
        for part in parts if self._packed is not None else ():
            by_kind.setdefault((part.tree.forks, part.length > self._padded.tree_limit), []).append(part)
        for kind in sorted(by_kind, reverse=True):
            if kind in self._compared:
                continue
            self._compared |= {kind, (False, kind[1])}  # a pass with a forking tree does all that one without does
            if reason := self._difference(by_kind[kind], beyond_window=kind[1]):
                self._packed = None
                logging.getLogger(__name__).warning(
                    "this model's rows cannot be packed (%s); they are padded side by side, which is slower", reason
                )
                break
        return self._packed is not None

    def _difference(self, parts: Sequence[Part], *, beyond_window: bool) -> str:
        """Why packed passes are not used; empty where they are. Two short rows, or the shortest beyond a window."""
        assert self._packed is not None
        if beyond_window:
            few = [replace(min(parts, key=lambda part: part.length), row=0, last=True)] * 2
            prefix = list(few[0].prompt[:_CHECKED_PREFIX])
        else:
            # made of the first and the last prompt's tokens
            prefix = list(parts[0].prompt[:_CHECKED_PREFIX])
            few = [
                Part(i, [*prefix, *part.prompt[-_CHECKED_REST:]], part.tree, part.candidates, last=True)
                for i, part in enumerate((parts[0], parts[-1]))
            ]
        self._packed.prepare()
        try:
            # what the packed scorer replaced stays in place meanwhile: each part was compared with its original
            together = self._packed.score(few, prefix)
            agree = _agree(together, [self._alone(row) for row in few], self.model)
        except (RuntimeError, TypeError, AttributeError, KeyError) as error:
            if "memory" in str(error):
                raise
            return f"{type(error).__name__}: {error}"
        return "" if agree else "other scores than one by one"

    def _alone(self, part: Part) -> np.ndarray:
        import numpy as np

        return np.concatenate([self._padded.score([chain])[0] for chain in self._padded.chains(part)])


def _prefix_length(request: ScoreRequest) -> int:
    """How much of a prompt's beginning is computed apart from it."""
    # the prompt's last token is always computed with it: its logits are read
    most = min(request.prefix_length, len(request.prompt) - 1)
    return most if most >= _SHORTEST_PREFIX else 0


def _agree(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], model: Any) -> bool:
    import numpy as np
    import torch

    exact = model.get_input_embeddings().weight.dtype == torch.float32
    score_bound, probability_bound = (1e-3, 1e-4) if exact else (0.5, 0.05)
    return all(
        np.abs(a - b).max() <= score_bound and np.abs(probabilities(a) - probabilities(b)).max() <= probability_bound
        for a, b in zip(found, expected, strict=True)
        if np.isfinite(a).all() or np.isfinite(b).all()  # a row that has no scores either way says nothing
    )


def _common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, the last one of each left out."""
    # what the first and the last in order have in common, all in between have in common too
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))
    most = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


@lru_cache(maxsize=1)
def _require_logits_to_keep() -> None:
    # older releases take the argument and silently slice it wrongly
    from transformers import modeling_utils

    if not hasattr(modeling_utils, "slice_logits_to_keep"):
        import transformers

        raise ModelError(
            f"transformers {transformers.__version__} cannot keep logits by position; "
            "install the version that fenlei asks for: pip install -U 'transformers>=5.17'"
        )


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax of scores over the candidates, ``(C,)`` or ``(N, C)``, after division by the temperature."""
    import numpy as np

    scaled = scores / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    exp = np.exp(scaled)
    return exp / exp.sum(axis=-1, keepdims=True)
