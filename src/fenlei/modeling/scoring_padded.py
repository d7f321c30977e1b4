"""Scoring with rows side by side, padded on the right: for models whose rows cannot be packed.

Shape letters: B rows, T tokens, V vocabulary, K positions whose logits are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenlei.modeling.scoring_parts import Part, read_places, sum_paths
from fenlei.modeling.tree import AnswerTree, ancestors

if TYPE_CHECKING:
    import numpy as np
    import torch


class PaddedScorer:
    """Scores parts in a plain forward pass; nothing of the model is replaced.

    Args:
        model: a causal language model, with or without adapter.
        pad_id: fills shorter rows on the right, where causal attention never looks.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.tree_limit = _longest_tree(model.config)

    def chains(self, part: Part) -> list[Part]:
        """The rows that a part needs: one, or one a candidate where no tree can be used."""
        if part.tree.node_count == 1 or part.length <= self.tree_limit:
            return [part]
        end = part.candidates[-1]
        return [
            Part(part.row, part.prompt, _chain(part.tree, i), (c,), last=part.last and c == end)
            for i, c in enumerate(part.candidates)
        ]

    def score(self, parts: list[Part]) -> list[np.ndarray]:
        """Scores of the candidates of each part, ``(number of candidates,)``."""
        import torch

        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self._inputs(parts).items()}
        with torch.inference_mode():
            # a boolean mask keeps the hidden states 2-D, (K, H): with 3-D ones and a frozen head, matmul copies the
            # whole transposed head at every call
            logits = self.model(**inputs, use_cache=False).logits  # (K, V)
            logp = torch.log_softmax(logits.float(), dim=-1)
            places, tokens = read_places(parts)
            values = logp[torch.tensor(places, device=device), torch.tensor(tokens, device=device)]
        return sum_paths(values.double().cpu().numpy(), parts)

    def _inputs(self, parts: list[Part]) -> dict[str, torch.Tensor]:
        import torch

        sequences = [[*part.prompt, *part.tree.tokens] for part in parts]
        width = max(len(s) for s in sequences)
        ids = torch.full((len(parts), width), self.pad_id)
        keep = torch.zeros((len(parts), width), dtype=torch.bool)
        for b, sequence in enumerate(sequences):
            ids[b, : len(sequence)] = torch.tensor(sequence)
            keep[b, len(parts[b].prompt) - 1 : len(sequence)] = True
        inputs = {"input_ids": ids, "logits_to_keep": keep}
        # a chain of tokens is plain causal text; only a tree that forks needs a mask and positions of its own
        if any(part.tree.forks for part in parts):
            inputs["attention_mask"], inputs["position_ids"] = _tree_mask(parts, width)
        return inputs


def _chain(tree: AnswerTree, candidate: int) -> AnswerTree:
    """The path to one candidate alone: its shared tokens one after the other."""
    path = tree.steps[candidate]
    tokens = tuple(tree.tokens[node - 1] for node, _ in path[1:])
    steps = (tuple((i, token) for i, (_, token) in enumerate(path)),)
    return AnswerTree(tokens, tuple(range(len(tokens))), tuple(range(1, len(tokens) + 1)), steps)


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


def _tree_mask(parts: list[Part], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean mask ``(B, 1, T, T)``: causal within the prompt; a tree token sees the prompt and its ancestors."""
    import torch

    mask = torch.zeros((len(parts), 1, width, width), dtype=torch.bool)
    positions = torch.arange(width).repeat(len(parts), 1)
    for b, part in enumerate(parts):
        tree, n = part.tree, len(part.prompt)
        mask[b, 0] = torch.eye(width, dtype=torch.bool)  # padding sees itself: a row of no keys would be NaN
        mask[b, 0, :n, :n] = torch.ones((n, n), dtype=torch.bool).tril()
        nodes = torch.tensor(ancestors(tree))
        end = n + tree.node_count - 1
        mask[b, 0, n:end, :n] = True
        mask[b, 0, n:end, n:end] = nodes
        positions[b, n:end] = torch.tensor(tree.depths) + n - 1
    return mask, positions
