"""Exact log-probabilities of every candidate's answer, in one forward pass a batch.

Shape letters: B rows, T tokens, V vocabulary, K positions whose logits are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError
from fenlei.modeling.tree import AnswerTree, build_tree

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the answers to score after it; each answer ends with the end-of-turn token."""

    prompt: Sequence[int]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Part:
    """One row of a forward pass: a prompt, a tree after it, and the candidates that the tree scores."""

    row: int
    prompt: Sequence[int]
    tree: AnswerTree
    candidates: tuple[int, ...]
    last: bool

    @property
    def length(self) -> int:
        return len(self.prompt) + self.tree.node_count - 1


class CandidateScorer:
    """Scores candidates by :mod:`fenlei.modeling.tree`'s definition.

    Labels that share a beginning are scored as a tree in one pass where the model's attention takes a mask of our
    own. Where it does not (an implementation other than sdpa) or where the mask would hide a sliding window that the
    prompt outgrows (Gemma 3, Mistral v0.1), the prompt is repeated for each of them: slower, the same scores.

    Args:
        model: a causal language model, with or without adapter; put into evaluation mode while it scores.
        pad_id: fills shorter rows on the right, where causal attention never looks.
        batch_tokens: most tokens, padding included, in one forward pass; one row may exceed it alone. By default
            512 on CPU, where larger batches were measured to be slower, and 16384 elsewhere.
    """

    def __init__(self, model: Any, pad_id: int, batch_tokens: int | None = None) -> None:
        _require_logits_to_keep()
        self.model = model
        self.pad_id = pad_id
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.batch_tokens = batch_tokens or (512 if on_cpu else 16384)
        self._tree_limit = _longest_tree(model.config)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Any = None) -> list[np.ndarray]:
        """Log-probabilities, in the order of the requests; one array ``(number of candidates,)`` each.

        Args:
            requests: rows, each with its own candidates if need be.
            progress: called with the number of rows done after every batch.
        """
        work = [part for i, request in enumerate(requests) for part in self._parts(i, request)]
        scores: list[dict[int, float]] = [{} for _ in requests]
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in _batches(work, self.batch_tokens):
                for part, values in zip(batch, self._score_batch(batch), strict=True):
                    scores[part.row].update(zip(part.candidates, values.tolist(), strict=True))
                if progress is not None:
                    progress(sum(part.last for part in batch))
        finally:
            self.model.train(was_training)
        return [_in_order(found, len(request.answers)) for found, request in zip(scores, requests, strict=True)]

    def _parts(self, row: int, request: ScoreRequest) -> list[_Part]:
        """The forward rows that a request needs: one, or one a candidate where no tree can be used."""
        tree = _tree_of(request.answers)
        everyone = tuple(range(len(request.answers)))
        if tree.node_count == 1 or len(request.prompt) + tree.node_count - 1 <= self._tree_limit:
            return [_Part(row, request.prompt, tree, everyone, last=True)]
        chains = [_chain(tree, c) for c in everyone]
        return [
            _Part(row, request.prompt, t, (c,), last=c == everyone[-1]) for c, t in zip(everyone, chains, strict=True)
        ]

    def _score_batch(self, rows: list[_Part]) -> list[np.ndarray]:
        import torch

        device = next(self.model.parameters()).device
        inputs = self._inputs(rows)
        with torch.inference_mode():
            inputs = {k: v.to(device) for k, v in inputs.items()}
            # a boolean mask keeps the hidden states 2-D, (K, H): with 3-D ones and a frozen head, matmul copies the
            # whole transposed head at every call
            logits = self.model(**inputs, use_cache=False).logits  # (K, V)
            logp = torch.log_softmax(logits.float(), dim=-1)
        results, start = [], 0
        for tree in (row.tree for row in rows):
            nodes = torch.tensor([n + start for path in tree.steps for n, _ in path], device=device)
            tokens = torch.tensor([t for path in tree.steps for _, t in path], device=device)
            values = logp[nodes, tokens].double().cpu().numpy()
            results.append(_sum_paths(values, [len(path) for path in tree.steps]))
            start += tree.node_count
        return results

    def _inputs(self, rows: list[_Part]) -> dict[str, torch.Tensor]:
        import torch

        sequences = [[*row.prompt, *row.tree.tokens] for row in rows]
        width = max(len(s) for s in sequences)
        ids = torch.full((len(rows), width), self.pad_id)
        keep = torch.zeros((len(rows), width), dtype=torch.bool)
        for b, sequence in enumerate(sequences):
            ids[b, : len(sequence)] = torch.tensor(sequence)
            keep[b, len(rows[b].prompt) - 1 : len(sequence)] = True
        inputs = {"input_ids": ids, "logits_to_keep": keep}
        # a chain of tokens is plain causal text; only a tree that forks needs a mask and positions of its own
        if any(row.tree.forks for row in rows):
            inputs["attention_mask"], inputs["position_ids"] = _tree_mask(rows, width)
        return inputs


def _batches(parts: list[_Part], batch_tokens: int) -> Iterator[list[_Part]]:
    """Rows of nearly equal length under the token budget, longest first; forking trees apart from the others."""
    batch: list[_Part] = []
    for part in sorted(parts, key=lambda p: (p.tree.forks, -p.length)):
        new_kind = batch and part.tree.forks != batch[0].tree.forks
        if batch and (new_kind or (len(batch) + 1) * batch[0].length > batch_tokens):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _chain(tree: AnswerTree, candidate: int) -> AnswerTree:
    """The path to one candidate alone: its shared tokens one after the other."""
    path = tree.steps[candidate]
    tokens = tuple(tree.tokens[node - 1] for node, _ in path[1:])
    steps = (tuple((i, token) for i, (_, token) in enumerate(path)),)
    return AnswerTree(tokens, tuple(range(len(tokens))), tuple(range(1, len(tokens) + 1)), steps)


def _in_order(found: dict[int, float], count: int) -> np.ndarray:
    import numpy as np

    return np.array([found[candidate] for candidate in range(count)])


def _longest_tree(config: Any) -> float:
    """Most tokens of prompt and tree for which a mask of our own says the same as the model's."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "_attn_implementation", None) != "sdpa":
        return 0
    window = getattr(text, "sliding_window", None)
    sliding = getattr(text, "use_sliding_window", True) and any(
        kind != "full_attention" for kind in getattr(text, "layer_types", None) or ["sliding_attention"]
    )
    return float(window) if window and sliding else float("inf")


def _tree_mask(rows: list[_Part], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean mask ``(B, 1, T, T)``: causal within the prompt; a tree token sees the prompt and its ancestors."""
    import torch

    mask = torch.zeros((len(rows), 1, width, width), dtype=torch.bool)
    positions = torch.arange(width).repeat(len(rows), 1)
    for b, row in enumerate(rows):
        tree, n = row.tree, len(row.prompt)
        mask[b, 0] = torch.eye(width, dtype=torch.bool)  # padding sees itself: a row of no keys would be NaN
        mask[b, 0, :n, :n] = torch.ones((n, n), dtype=torch.bool).tril()
        for node, (parent, depth) in enumerate(zip(tree.parents, tree.depths, strict=True), start=1):
            place = n + node - 1
            mask[b, 0, place, :n] = True
            if parent:
                mask[b, 0, place, n:] |= mask[b, 0, n + parent - 1, n:]
            positions[b, place] = n - 1 + depth
    return mask, positions


def _sum_paths(values: np.ndarray, lengths: list[int]) -> np.ndarray:
    import numpy as np

    starts = np.cumsum([0, *lengths[:-1]])
    return np.add.reduceat(values, starts)


@lru_cache(maxsize=4096)
def _tree_of(answers: tuple[tuple[int, ...], ...]) -> AnswerTree:
    return build_tree(answers)


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
