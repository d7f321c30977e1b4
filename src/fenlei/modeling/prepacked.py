"""Weights laid out for the processor's matrix instructions: once, instead of at every product.

oneDNN, which multiplies torch's bfloat16 matrices on x86 processors, wants the weights in blocks. From a plain tensor
it makes them anew at each product: a seventh of the time of a long product, two thirds of a short one. The products are
the same to the bit.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

# share of the machine's memory that the second layout may take: by size of the machine, not by what is free, so that
# the same command does the same
_MOST_OF_MEMORY = 0.125
# rows that the layout is chosen for; it was measured to make no difference between 1 and 1024
_ROWS = 1024
# weight -> (address and version, blocks); models that share weights share these, and they go with the weight
_KNOWN: Any = WeakTensorKeyDictionary()


def prepack(model: Any) -> int:
    """Lays out the weights of a model's linear layers, where that pays and memory allows.

    Only frozen bfloat16 weights on an x86 CPU; the language-model head, of which few rows are read, stays as it is.

    Returns:
        How many weights are laid out.
    """
    if not _possible():
        return 0
    head = model.get_output_embeddings()
    weights = [m.weight for m in model.modules() if type(m) is torch.nn.Linear and m is not head]
    weights = [w for w in weights if _suits(w)]
    if sum(w.nbytes for w in weights) > _MOST_OF_MEMORY * _memory():
        return 0
    for weight in weights:
        if _blocks(weight) is None:
            _KNOWN[weight] = (_mark(weight), torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS))
    return len(weights)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x W^T + b``, ``(N, I)`` to ``(N, O)``; without gradients by :func:`prepack`'s layout, if there is one."""
    blocks = _blocks(weight) if torch.is_inference_mode_enabled() else None
    if blocks is None or x.dtype != weight.dtype:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")  # type: ignore[no-any-return]


def _blocks(weight: torch.Tensor) -> torch.Tensor | None:
    mark, blocks = _KNOWN.get(weight, (None, None))
    return blocks if mark == _mark(weight) else None


def _mark(weight: torch.Tensor) -> tuple[int, int]:
    """Changes with the weight's content: a change in place raises the version, other content has another address."""
    return weight.data_ptr(), weight._version


def _suits(weight: torch.Tensor) -> bool:
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and not weight.requires_grad
        and not weight.is_inference()  # those have no version
    )


def _possible() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    if not all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False  # not part of torch's public interface
    return bool(ops._is_mkldnn_bf16_supported())


def _memory() -> float:
    """Bytes of memory that this machine, or the container, has."""
    try:
        physical = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 0.0
    try:
        return min(physical, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical
