"""Which number format makes an adapter's small products fastest on this machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from fenlei.config import RunConfig
from fenlei.modeling.fuse import adapted
from fenlei.modeling.fused_ops import LoraWeights, lora_linears

_TOKENS, _REPEATS = 384, 5
# float32 is more exact; another format has to be this much faster
_WORTH_IT = 0.95


def adapter_dtype(model: Any, config: RunConfig, chosen: str | None = None) -> torch.dtype:
    """The format for the products with A and B; their weights are float32 in any case.

    On two CPUs of the same vendor the one was measured to be twice as fast as the other, either way round: on a CPU
    with bfloat16 weights both are tried for a fraction of a second.

    Args:
        model: the model with its adapter.
        config: ``speed.adapter_dtype``.
        chosen: what was chosen before an interruption.
    """
    wanted = chosen or config.speed.adapter_dtype
    if wanted != "auto":
        return getattr(torch, wanted)  # type: ignore[no-any-return]
    layers = [found for m in model.modules() if (found := adapted(m)) is not None and found.a is not None]
    if not layers:
        return torch.float32
    base = layers[0].weight.dtype
    if base == torch.float32 or layers[0].weight.device.type != "cpu":
        return base
    largest = max(layers, key=lambda layer: layer.weight.numel())
    seconds = {dtype: _seconds(largest, dtype) for dtype in (torch.float32, base)}
    return base if seconds[base] < _WORTH_IT * seconds[torch.float32] else torch.float32


def _seconds(layer: LoraWeights, dtype: torch.dtype) -> float:
    """Median seconds of forward and backward through one layer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, layer.weight.shape[1], generator=generator).to(layer.weight.dtype).requires_grad_()
    taken = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        (y,) = lora_linears(x, [layer], dtype)
        torch.autograd.grad(y, [x, layer.a, layer.b], torch.ones_like(y))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
