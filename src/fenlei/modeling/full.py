"""Training the weights of the model itself, without an adapter.

AdamW's steps are far smaller than what bfloat16 can tell apart (1/256 of a weight), so weights that train are kept in
float32. Where the model was loaded in bfloat16 it still computes in it: a layer that asks for its weight gets the
rounded one, and gradients flow back to the float32 one. Every forward pass is therefore that of the rounded model,
which is also what is saved: scores taken in training, at its end, and after loading are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# float32: the weight, its gradient, and AdamW's two averages
_BYTES_A_WEIGHT = 16


def train_weights(model: PreTrainedModel, layers: str | None) -> PreTrainedModel:
    """Makes all weights of a frozen model trainable, or those of some decoder layers.

    A part of the model that reads pictures stays frozen: nothing flows through it here.

    Args:
        model: the model as loaded.
        layers: which decoder layers, see :func:`fenlei.modeling.layers.chosen_layers`; all weights by default.

    Raises:
        ModelError: the weights are float16, they will not fit into memory with gradients and optimizer, or the model
            brings its own code.
    """
    import torch

    if type(model).__module__.startswith("transformers_modules"):
        raise ModelError(
            "lora.method=full: this model brings its own Python code, and a classifier folder holds no code; take lora"
        )
    if model.dtype == torch.float16:
        raise ModelError("lora.method=full cannot train in float16; set model.dtype=bfloat16 or float32")
    chosen = _chosen(model, layers)
    _require_memory(chosen, model.device)
    dtype = model.dtype
    for parameter in chosen:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if dtype != torch.float32:
        _compute_in(model, dtype)
    _mend_generation_config(model)
    return model


def finish_weights(model: PreTrainedModel) -> None:
    """Ends training: the weights are frozen, and rounded to the number format that the model computes in."""
    for module in model.modules():
        dtype = getattr(type(module), "computes_in", None)
        if dtype is not None:
            module.__class__ = type(module).__bases__[0]
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)


def _chosen(model: PreTrainedModel, layers: str | None) -> list[torch.nn.Parameter]:
    from fenlei.modeling.layers import chosen_layers, decoder_layers

    if layers is not None:
        _, stack = decoder_layers(model)
        return [p for index in chosen_layers(layers, len(stack)) for p in stack[index].parameters()]
    return [p for name, p in model.named_parameters() if "vision" not in name]


def _require_memory(chosen: list[torch.nn.Parameter], device: torch.device) -> None:
    count = sum(p.numel() for p in chosen)
    more = count * _BYTES_A_WEIGHT - sum(p.numel() * p.element_size() for p in chosen)
    free = free_memory(device)
    if more > free:
        raise ModelError(
            f"lora.method=full trains {count / 1e6:,.0f} M weights, which takes {count * _BYTES_A_WEIGHT / 1e9:,.1f} "
            f"GB ({_BYTES_A_WEIGHT} bytes each: weight, gradient and AdamW's two averages); {free / 1e9:,.1f} GB are "
            f"free on {device}. Take lora.method=lora, a smaller model, or fewer layers (lora.layers=last:4)"
        )


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    for module in model.modules():
        trained = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        if trained:
            module.__class__ = _rounding(type(module), tuple(trained), dtype)


def _rounding(kind: type, names: tuple[str, ...], dtype: torch.dtype) -> type:
    """A subclass whose parameters read as rounded; ``parameters()`` and the state dict still hold the float32 ones."""

    def rounded(name: str) -> property:
        return property(lambda self: self._parameters[name].to(dtype))

    return type(kind.__name__, (kind,), {"computes_in": dtype, **{name: rounded(name) for name in names}})


def _mend_generation_config(model: Any) -> None:
    # some models come with settings that transformers loads with a warning and then refuses to save, e.g. a temperature
    # for a model that does not sample; better mended now than found at the first checkpoint
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
