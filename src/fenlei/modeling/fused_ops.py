"""Forward and backward passes of LoRA layers written out, so that little is stored and nothing is computed twice.

PEFT computes ``W x + s B (A x)`` for each layer apart and leaves the backward pass to autograd, which keeps a float32
copy of every layer's input and runs the small products one layer at a time in float32. Here layers that read the same
input (query, key, value; gate, up) share one product with their stacked A matrices, the input is stored once, and what
is cheap to compute again (the product of gate and up) is not stored at all.

Shape letters: N tokens, I inputs, O outputs, r rank of an adapter, R sum of the ranks of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fenlei.modeling.prepacked import linear

_HEAD_ROWS, _HEAD_PAIRS = 64, 4096
# of each hidden state, computed again in float32
_HEAD_LARGEST = 32


@dataclass(frozen=True)
class LoraWeights:
    """One linear layer and its adapter.

    Attributes:
        weight: frozen, ``(O, I)``.
        bias: frozen, ``(O,)``, or None.
        a: ``(r, I)``, or None for a layer without adapter.
        b: ``(O, r)``, or None.
        scale: factor of the adapter's product.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    scale: float


class _Group:
    """The products of layers that share their input; the adapter's small ones in ``dtype``."""

    def __init__(self, layers: Sequence[LoraWeights], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.ranks = [layer.a.shape[0] if layer.a is not None else 0 for layer in layers]
        parts = [layer.a for layer in layers if layer.a is not None]
        self.a = torch.cat([part.to(dtype) for part in parts]) if parts else None

    def inner(self, x: torch.Tensor) -> torch.Tensor | None:
        """``x A^T`` of all layers side by side, ``(N, R)``."""
        return x.to(self.dtype) @ self.a.t() if self.a is not None else None

    def forward(self, x: torch.Tensor, inner: torch.Tensor | None) -> list[torch.Tensor]:
        outputs, start = [], 0
        for layer, rank in zip(self.layers, self.ranks, strict=True):
            y = linear(x, layer.weight, layer.bias)
            if rank and inner is not None and layer.b is not None:
                _add_product(y, inner[:, start : start + rank], layer.b.to(self.dtype).t(), layer.scale)
                start += rank
            outputs.append(y)
        return outputs

    def backward(
        self, x: torch.Tensor, inner: torch.Tensor | None, grads: Sequence[torch.Tensor | None], want_x: bool
    ) -> tuple[torch.Tensor | None, list[tuple[torch.Tensor | None, torch.Tensor | None]]]:
        """Gradient of the input, and of (A, B) of each layer."""
        d_x: torch.Tensor | None = None
        d_inner = torch.zeros_like(inner) if inner is not None and any(g is None for g in grads) else None
        if inner is not None and d_inner is None:
            d_inner = torch.empty_like(inner)
        d_b: list[torch.Tensor | None] = []
        start = 0
        for layer, rank, grad in zip(self.layers, self.ranks, grads, strict=True):
            if grad is None:
                d_b.append(None)
                start += rank
                continue
            if want_x:
                # not addmm_: oneDNN was measured to take 1.6 times as long for it
                d_x = grad @ layer.weight if d_x is None else d_x.add_(grad @ layer.weight)
            if rank and inner is not None and d_inner is not None and layer.b is not None:
                small = grad.to(self.dtype)
                d_inner[:, start : start + rank] = small @ layer.b.to(self.dtype)
                d_inner[:, start : start + rank] *= layer.scale
                d_b.append((inner[:, start : start + rank].t() @ small).t() * layer.scale)
                start += rank
            else:
                d_b.append(None)
        if d_inner is None or self.a is None:
            return d_x, [(None, b) for b in d_b]
        if want_x and d_x is not None:
            _add_product(d_x, d_inner, self.a, 1.0)
        d_a = d_inner.t() @ x.to(self.dtype)
        parts = iter(d_a.split([rank for rank in self.ranks if rank]))
        return d_x, [(next(parts) if rank else None, b) for rank, b in zip(self.ranks, d_b, strict=True)]


def _add_product(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """``y += scale * left @ right`` in place."""
    if y.dtype == left.dtype:
        y.addmm_(left, right, alpha=scale)
    else:
        y.add_(left @ right, alpha=scale)


def _flatten(layers: Sequence[LoraWeights]) -> list[torch.Tensor | None]:
    return [t for layer in layers for t in (layer.a, layer.b)]


def _restore(layers: Sequence[LoraWeights], adapters: Sequence[torch.Tensor | None]) -> list[LoraWeights]:
    pairs = zip(adapters[::2], adapters[1::2], strict=True)
    return [LoraWeights(m.weight, m.bias, a, b, m.scale) for m, (a, b) in zip(layers, pairs, strict=True)]


def _in_dtype_of(
    layers: Sequence[LoraWeights], grads: Sequence[tuple[torch.Tensor | None, torch.Tensor | None]]
) -> list[torch.Tensor | None]:
    flat: list[torch.Tensor | None] = []
    for layer, (d_a, d_b) in zip(layers, grads, strict=True):
        flat.append(d_a.to(layer.a.dtype) if d_a is not None and layer.a is not None else None)
        flat.append(d_b.to(layer.b.dtype) if d_b is not None and layer.b is not None else None)
    return flat


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: Sequence[LoraWeights], dtype: torch.dtype, *ab: Any) -> Any:
        group = _Group(layers, dtype)
        flat = x.reshape(-1, x.shape[-1])
        inner = group.inner(flat)
        outputs = group.forward(flat, inner)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(flat, inner, *ab)
            ctx.layers, ctx.dtype, ctx.shape = layers, dtype, x.shape
            ctx.set_materialize_grads(False)
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:  # type: ignore[override]
        flat, inner, *ab = ctx.saved_tensors
        layers = _restore(ctx.layers, ab)
        rows = [g.reshape(-1, g.shape[-1]) if g is not None else None for g in grads]
        d_x, d_ab = _Group(layers, ctx.dtype).backward(flat, inner, rows, ctx.needs_input_grad[0])
        return (d_x.view(ctx.shape) if d_x is not None else None, None, None, *_in_dtype_of(layers, d_ab))


def lora_linears(x: torch.Tensor, layers: Sequence[LoraWeights], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs of linear layers that share the input ``x`` ``(..., I)``; one ``(..., O)`` a layer.

    Args:
        x: the input.
        layers: the layers.
        dtype: number format of the adapters' small products; their weights and gradients keep their own.
    """
    return _LoraLinears.apply(x, layers, dtype, *_flatten(layers))  # type: ignore[no-any-return]


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        entry: Sequence[LoraWeights],
        down: LoraWeights,
        dtype: torch.dtype,
        *ab: Any,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        first, second = _Group(entry, dtype), _Group([down], dtype)
        inner = first.inner(flat)
        gate, up = first.forward(flat, inner)
        hidden = torch.nn.functional.silu(gate).mul_(up)
        down_inner = second.inner(hidden)
        (out,) = second.forward(hidden, down_inner)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(flat, inner, gate, up, down_inner, *ab)
            ctx.entry, ctx.down, ctx.dtype, ctx.shape = entry, down, dtype, x.shape
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        flat, inner, gate, up, down_inner, *ab = ctx.saved_tensors
        *entry, down = _restore([*ctx.entry, ctx.down], ab)
        activated = torch.nn.functional.silu(gate)
        d_out = grad.reshape(-1, grad.shape[-1])
        d_hidden, d_down = _Group([down], ctx.dtype).backward(activated * up, down_inner, [d_out], True)
        assert d_hidden is not None
        d_up = activated.mul_(d_hidden)
        d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(up), gate)
        d_x, d_entry = _Group(entry, ctx.dtype).backward(flat, inner, [d_gate, d_up], ctx.needs_input_grad[0])
        return (
            d_x.view(ctx.shape) if d_x is not None else None,
            None,
            None,
            None,
            *_in_dtype_of([*entry, down], [*d_entry, *d_down]),
        )


def gated_mlp(
    x: torch.Tensor, gate: LoraWeights, up: LoraWeights, down: LoraWeights, dtype: torch.dtype
) -> torch.Tensor:
    """``down(silu(gate(x)) * up(x))``, ``(..., I)`` in and out; see :func:`lora_linears` for ``dtype``."""
    return _GatedMlp.apply(x, (gate, up), down, dtype, *_flatten((gate, up, down)))  # type: ignore[no-any-return]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        normed = x.float().mul_(inverse)
        d = (grad * weight).float()
        along = (d * normed).mean(-1, keepdim=True)
        return d.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype), None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``weight * x / sqrt(mean(x^2) + epsilon)`` over the last axis, as Llama and Qwen round it; weight frozen."""
    return _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-any-return]


def head_scores(hidden: torch.Tensor, weight: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of ``tokens[i]`` after ``hidden[places[i]]``, ``(m,)`` float32, without gradients.

    The logits that matter are float32 sums: bfloat16 would round a logit of 20 to the next multiple of 1/8, and with it
    the probabilities. These are the logits of the tokens themselves and the largest ones of the normalizer; among the
    many small ones such errors average out. The logits of a few hidden states at a time: those of a large label set
    would take gigabytes.

    Args:
        hidden: ``(n, I)``.
        weight: the head, ``(V, I)``.
        places: indices of hidden states, ``(m,)``.
        tokens: ``(m,)``.
    """
    normalizer = torch.cat([_normalizer(some, weight) for some in hidden.split(_HEAD_ROWS)])
    own = torch.cat(
        [
            (hidden[some].float() * weight[wanted].float()).sum(-1)
            for some, wanted in zip(places.split(_HEAD_PAIRS), tokens.split(_HEAD_PAIRS), strict=True)
        ]
    )
    return (own - normalizer[places]).clamp_(max=0.0)  # by a rounding, a certain token may seem more than certain


def _normalizer(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Log of the sum of the exponentials of all logits, ``(n,)`` float32."""
    rough = hidden @ weight.t()
    logits = rough.float()
    if rough.dtype != torch.float32:
        largest = rough.topk(min(_HEAD_LARGEST, len(weight)), dim=-1).indices
        exact = torch.einsum("ni,nki->nk", hidden.float(), weight[largest].float())
        logits.scatter_(1, largest, exact)
    return torch.logsumexp(logits, dim=-1)
