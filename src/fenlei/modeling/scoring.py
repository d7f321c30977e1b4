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


class CandidateScorer:
    """Scores candidates by :mod:`fenlei.modeling.tree`'s definition.

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

    def score(self, requests: Sequence[ScoreRequest], *, progress: Any = None) -> list[np.ndarray]:
        """Log-probabilities, in the order of the requests; one array ``(number of candidates,)`` each.

        Args:
            requests: rows, each with its own candidates if need be.
            progress: called with the number of rows done after every batch.
        """
        results: list[np.ndarray | None] = [None] * len(requests)
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(requests):
                trees = [_tree_of(requests[i].answers) for i in batch]
                for i, scores in zip(batch, self._score_batch([requests[i] for i in batch], trees), strict=True):
                    results[i] = scores
                if progress is not None:
                    progress(len(batch))
        finally:
            self.model.train(was_training)
        return [r for r in results if r is not None]

    def _batches(self, requests: Sequence[ScoreRequest]) -> Iterator[list[int]]:
        """Rows of nearly equal length under the token budget, longest first; trees apart from plain prompts."""

        def length(i: int) -> int:
            return len(requests[i].prompt) + _tree_of(requests[i].answers).node_count - 1

        def has_tree(i: int) -> bool:
            return _tree_of(requests[i].answers).node_count > 1

        order = sorted(range(len(requests)), key=lambda i: (has_tree(i), -length(i)))
        batch: list[int] = []
        for i in order:
            new_kind = batch and has_tree(i) != has_tree(batch[0])
            if batch and (new_kind or (len(batch) + 1) * length(batch[0]) > self.batch_tokens):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _score_batch(self, rows: list[ScoreRequest], trees: list[AnswerTree]) -> list[np.ndarray]:
        import torch

        device = next(self.model.parameters()).device
        inputs = self._inputs(rows, trees)
        with torch.inference_mode():
            inputs = {k: v.to(device) for k, v in inputs.items()}
            # a boolean mask keeps the hidden states 2-D, (K, H): with 3-D ones and a frozen head, matmul copies the
            # whole transposed head at every call
            logits = self.model(**inputs, use_cache=False).logits  # (K, V)
            logp = torch.log_softmax(logits.float(), dim=-1)
        results, start = [], 0
        for tree in trees:
            nodes = torch.tensor([n + start for path in tree.steps for n, _ in path], device=device)
            tokens = torch.tensor([t for path in tree.steps for _, t in path], device=device)
            values = logp[nodes, tokens].double().cpu().numpy()
            results.append(_sum_paths(values, [len(path) for path in tree.steps]))
            start += tree.node_count
        return results

    def _inputs(self, rows: list[ScoreRequest], trees: list[AnswerTree]) -> dict[str, torch.Tensor]:
        import torch

        sequences = [[*row.prompt, *tree.tokens] for row, tree in zip(rows, trees, strict=True)]
        width = max(len(s) for s in sequences)
        ids = torch.full((len(rows), width), self.pad_id)
        keep = torch.zeros((len(rows), width), dtype=torch.bool)
        for b, sequence in enumerate(sequences):
            ids[b, : len(sequence)] = torch.tensor(sequence)
            keep[b, len(rows[b].prompt) - 1 : len(sequence)] = True
        inputs = {"input_ids": ids, "logits_to_keep": keep}
        if any(tree.tokens for tree in trees):
            inputs["attention_mask"], inputs["position_ids"] = _tree_mask(rows, trees, width)
        return inputs


def _tree_mask(rows: list[ScoreRequest], trees: list[AnswerTree], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean mask ``(B, 1, T, T)``: causal within the prompt; a tree token sees the prompt and its ancestors."""
    import torch

    mask = torch.zeros((len(rows), 1, width, width), dtype=torch.bool)
    positions = torch.arange(width).repeat(len(rows), 1)
    for b, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        n = len(row.prompt)
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
