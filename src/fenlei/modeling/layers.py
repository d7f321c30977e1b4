"""Which decoder layers of a model are tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError

if TYPE_CHECKING:
    import torch


def decoder_layers(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The list of decoder layers and the name it has in the decoder, e.g. ``layers`` or ``h``.

    Raises:
        ModelError: the model has no such list.
    """
    import torch

    count = model.config.get_text_config().num_hidden_layers
    for name, child in model.get_decoder().named_children():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return name, child
    raise ModelError(
        f"lora.layers: no list of {count} decoder layers is found in a {type(model).__name__}; leave lora.layers out"
    )


def chosen_layers(text: str, count: int) -> list[int]:
    """The numbers of the layers that ``lora.layers`` names.

    Args:
        text: ``A-B``, counted from 0, both ends included; or ``last:N``.
        count: number of layers of the model.

    Raises:
        ModelError: the model has no such layers.
    """
    kind, _, number = text.rpartition(":")
    first, last = (count - int(number), count - 1) if kind == "last" else map(int, text.split("-"))
    if first < 0 or last >= count:
        raise ModelError(
            f"lora.layers={text!r}: the model has {count} layers, numbered 0 to {count - 1}; "
            f"e.g. last:{max(count // 2, 1)} or {count // 2}-{count - 1}"
        )
    return list(range(first, last + 1))
