"""Which number format an adapter's small products are computed in."""

from __future__ import annotations

from typing import Any

import torch

from fenlei.config import ModelConfig, RunConfig
from fenlei.modeling.fuse import adapted
from fenlei.modeling.loading import pick_dtype


def adapter_dtype(model: Any, config: RunConfig, chosen: str | None = None) -> torch.dtype:
    """The format for the products with A and B; their weights are float32 in any case.

    A rule, not a measurement: timings decide otherwise from run to run, and the same command would give other weights.
    bfloat16 where the device computes in it. On a CPU that does, it was never slower than float32 beyond the noise, up
    to 1.28 times as fast, and stored less (docs/benchmarks.md); where it is emulated, float32.

    Args:
        model: the model with its adapter.
        config: ``speed.adapter_dtype``.
        chosen: what was chosen before an interruption.
    """
    wanted = chosen or config.speed.adapter_dtype
    if wanted != "auto":
        return getattr(torch, wanted)  # type: ignore[no-any-return]
    layers = (found for m in model.modules() if (found := adapted(m)) is not None and found.a is not None)
    weight = next((layer.weight for layer in layers), None)
    if weight is None or weight.dtype == torch.float32:
        return torch.float32
    native = pick_dtype(ModelConfig(), weight.device)
    return weight.dtype if native == weight.dtype else torch.float32
