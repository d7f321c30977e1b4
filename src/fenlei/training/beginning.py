"""What all rows of an optimizer step begin with, computed once for all of its forward passes, gradients included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fenlei.modeling.packed import BlockSize, KeysAndValues, PackedState, pack


class CommonBeginning:
    """Keys and values of shared tokens, with their graph.

    The passes of the rows get copies without a graph, which collect the gradients of all of them; one backward pass
    through the shared tokens then stands for as many as there are passes. The sums are the same.

    Args:
        model: the model.
        state: its packed state.
        ids: the shared tokens.
        size: of the blocks of attention.

    Attributes:
        past: keys and values for :meth:`PackedState.running`.
    """

    def __init__(self, model: Any, state: PackedState, ids: Sequence[int], size: BlockSize) -> None:
        self._found: KeysAndValues = {}
        device = next(model.parameters()).device
        tokens, layout = pack([ids], 0, size)
        layout = layout.to(device)
        last = torch.tensor([len(tokens) - 1], device=device)
        keep = torch.zeros(1, len(tokens), dtype=torch.bool, device=device)
        keep[0, -1] = True  # a model cannot be asked for no logits at all
        with state.running(layout, last, remember=self._found):
            model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=layout.positions[None],
                logits_to_keep=keep,
                use_cache=False,
            )
        self.past: KeysAndValues = {layer: (_leaf(key), _leaf(value)) for layer, (key, value) in self._found.items()}

    def backward(self) -> None:
        """Passes on the gradients that the rows' passes have left."""
        tensors, grads = [], []
        for layer, pair in self._found.items():
            for tensor, leaf in zip(pair, self.past[layer], strict=True):
                if tensor.requires_grad and leaf.grad is not None:
                    tensors.append(tensor)
                    grads.append(leaf.grad)
        if tensors:  # none where only layers above are trained
            torch.autograd.backward(tensors, grads)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
