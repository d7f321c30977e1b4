"""Liger's kernels for what lies between a model's matrix products, on a GPU where the package is there.

Used are those for RMSNorm, rotary positions and the activation of the MLP. Its cross-entropy is not: it takes hidden
states of all positions, and here the loss is taken at answer positions only.

Not measured here: see benchmarks/gpu.sh.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError, need_extra

if TYPE_CHECKING:
    import torch

# decoders whose patch touches nothing but the modules of the one model and names in its own source file
_KNOWN = ("gemma", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
_WANTED = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
_UNWANTED = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(model: Any, wanted: str) -> bool:
    """Puts Liger's kernels into a model; :func:`remove_liger` and ``unfuse`` take them out again.

    Args:
        model: a PEFT model or a plain causal language model on its device.
        wanted: ``speed.kernels``: ``auto``, ``liger`` or ``torch``.

    Returns:
        Whether they are used.

    Raises:
        ModelError: they are asked for and do not go with the device or the model.
        MissingDependency: they are asked for and not installed.
    """
    if wanted == "torch":
        return False
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, device = str(base.config.model_type), next(model.parameters()).device
    reason = _cannot(kind, device)
    if reason is None and not _installed():
        if wanted == "liger":
            raise need_extra("liger-kernel", "gpu")
        return False
    if reason is not None:
        if wanted == "liger":
            raise ModelError(f"{reason}: take speed.kernels=auto")
        return False
    _patch(base)
    return True


def remove_liger(model: Any) -> None:
    """The names in the model's source file as they were; ``unfuse`` removes what was bound to single modules."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    source, before = base.__dict__.pop("fenlei_liger", (None, {}))
    for name, value in before.items():
        setattr(source, name, value)


def _cannot(kind: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"speed.kernels=liger needs a CUDA GPU, the model is on {device}"
    if kind not in _KNOWN:
        return f"speed.kernels=liger: not tried with a model of type {kind} (known: {', '.join(_KNOWN)})"
    return None


def _installed() -> bool:
    from transformers.utils import is_liger_kernel_available

    return bool(is_liger_kernel_available())


def _patch(base: Any) -> None:
    from transformers.integrations.liger import apply_liger_kernel

    source = sys.modules[type(base).__module__]
    before = dict(vars(source))
    apply_liger_kernel(base, {**_WANTED, **_UNWANTED})
    changed = {name: value for name, value in before.items() if vars(source)[name] is not value}
    for name in [n for n, value in changed.items() if isinstance(value, type)]:
        # classes: the model's own modules are patched already, and models loaded later are none of its business
        setattr(source, name, changed.pop(name))
    base.__dict__["fenlei_liger"] = (source, changed)
