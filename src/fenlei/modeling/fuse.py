"""Replaces the slow parts of a model with LoRA by the fused ones, where both were seen to agree.

Only ``forward`` of single modules is replaced, on the instance: parameters, state dict and PEFT's own functions stay as
they are. Each replacement is tried on random input first and kept only if it gives what the original gives, so an
architecture with another formula simply keeps its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fenlei.modeling.packed import PackedState, attention_modules

if TYPE_CHECKING:
    import torch

    from fenlei.config import SpeedConfig
    from fenlei.modeling.fused_ops import LoraWeights

_PROBE_TOKENS = 5


def fuse(
    model: Any, speed: SpeedConfig, state: PackedState, adapter_dtype: torch.dtype, *, head: bool = True
) -> dict[str, int]:
    """Puts the fused parts into a model, in the place of those that were put in before.

    Args:
        model: a PEFT model or a plain causal language model on its device.
        speed: which parts.
        state: what a packed pass leaves for the patched parts to read.
        adapter_dtype: number format of the adapters' small products.
        head: whether the language-model head gives log-probabilities of pairs, where a packed pass asks for them.

    Returns:
        How many modules were replaced, by part.
    """
    from fenlei.modeling.kernels import use_liger

    unfuse(model)
    liger = speed.fused_norm and use_liger(model, speed.kernels)
    done = {"norm": 0, "projections": 0, "mlp": 0, "last_layer": 0, "head": 0}
    if speed.fused_norm:
        done["norm"] = sum(_fuse_norm(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm"))
    if speed.fused_lora:
        for attention in attention_modules(model):
            done["projections"] += _fuse_projections(attention, adapter_dtype)
        done["mlp"] = sum(_fuse_mlp(m, adapter_dtype) for m in _mlps(model))
    if speed.last_layer:
        done["last_layer"] = _narrow_last_layer(model, state)
    if head:
        done["head"] = _fuse_head(model, state)
    if liger:
        done["liger"] = 1
    state.fused = done
    return done


def unfuse(model: Any) -> None:
    """Takes all replacements out again."""
    from fenlei.modeling.kernels import remove_liger

    remove_liger(model)
    for module in model.modules():
        module.__dict__.pop("forward", None)
        module.__dict__.pop("fenlei_shared", None)
    PackedState.of(model).fused = {}


def forget(model: Any) -> None:
    """Drops outputs that were computed ahead in a forward pass that failed: they hold all of its activations."""
    for module in model.modules():
        if (shared := module.__dict__.get("fenlei_shared")) is not None:
            shared.forget()


def _mlps(model: Any) -> list[Any]:
    return [m for m in model.modules() if all(hasattr(m, name) for name in ("gate_proj", "up_proj", "down_proj"))]


def _all_adapted(modules: list[Any]) -> list[LoraWeights] | None:
    found = [adapted(module) for module in modules]
    return None if any(w is None for w in found) else [w for w in found if w is not None]


def adapted(module: Any) -> LoraWeights | None:
    """The weights of a linear layer with at most one plain LoRA adapter; None for anything else.

    Looked up at every call: an adapter may be switched off or merged in between.
    """
    import torch
    from peft.tuners.lora import Linear as LoraLinear

    from fenlei.modeling.fused_ops import LoraWeights

    if type(module) is torch.nn.Linear:
        frozen = not module.weight.requires_grad
        return LoraWeights(module.weight, module.bias, None, None, 0.0) if frozen else None
    if type(module) is not LoraLinear or type(module.base_layer) is not torch.nn.Linear:
        return None
    base = module.base_layer
    if base.weight.requires_grad:
        return None
    if module.disable_adapters and not module.merged:
        return LoraWeights(base.weight, base.bias, None, None, 0.0)
    names = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged or module.disable_adapters or len(names) != 1:
        return None
    (name,) = names
    drops = getattr(module.lora_dropout[name], "p", 0.0)
    if drops or name in module.lora_variant or module.lora_bias.get(name):
        return None
    a, b = module.lora_A[name], module.lora_B[name]
    return LoraWeights(base.weight, base.bias, a.weight, b.weight, float(module.scaling[name]))


class _SharedInput:
    """Layers called one after the other with the same input: the first call computes all of them."""

    def __init__(self, layers: list[Any], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.originals = [layer.forward for layer in layers]
        self._input: Any = None
        self._ready: dict[int, Any] = {}

    def forget(self) -> None:
        self._input, self._ready = None, {}

    def forward_of(self, index: int) -> Callable[..., Any]:
        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if self._input is x and index in self._ready and not args and not kwargs:
                found = self._ready.pop(index)
                if not self._ready:
                    self._input = None
                return found
            weights = _all_adapted(self.layers) if index == 0 and not args and not kwargs else None
            if weights is None:
                return self.originals[index](x, *args, **kwargs)
            from fenlei.modeling.fused_ops import lora_linears

            outputs = lora_linears(x, weights, self.dtype)
            self._input, self._ready = (x, dict(enumerate(outputs[1:], start=1))) if len(outputs) > 1 else (None, {})
            return outputs[0]

        return forward


def _fuse_projections(attention: Any, dtype: torch.dtype) -> int:
    replaced = 0
    for names in (("q_proj", "k_proj", "v_proj"), ("o_proj",)):
        layers = [getattr(attention, name) for name in names]
        if any(adapted(layer) is None for layer in layers):
            continue
        shared = _SharedInput(layers, dtype)
        for index, layer in enumerate(layers):
            layer.forward, layer.fenlei_shared = shared.forward_of(index), shared
            replaced += 1
    return replaced


def _fuse_mlp(mlp: Any, dtype: torch.dtype) -> int:
    import torch

    from fenlei.modeling.fused_ops import gated_mlp

    layers = [getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    found = _all_adapted(layers)
    if found is None:
        return 0
    first, original = found[0], mlp.forward

    def forward(x: Any) -> Any:
        weights = _all_adapted(layers)
        if weights is None:
            return original(x)
        gate, up, down = weights
        return gated_mlp(x, gate, up, down, dtype)

    # in float32, where a different formula shows and rounding does not
    probe = _probe(first.weight.shape[1], first.weight, torch.float32)
    act = getattr(mlp, "act_fn", None)
    if act is None or not torch.allclose(act(probe), torch.nn.functional.silu(probe), atol=1e-6):
        return 0
    sample = probe.to(first.weight.dtype)
    with torch.no_grad():
        if not _close(forward(sample), original(sample)):
            return 0
    mlp.forward = forward
    return 1


def _fuse_norm(norm: Any) -> int:
    import torch

    from fenlei.modeling.fused_ops import rms_norm

    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or epsilon is None or weight.requires_grad or "forward" in norm.__dict__:
        return 0
    original = norm.forward
    sample = _probe(weight.shape[0], weight, weight.dtype)
    with torch.no_grad():
        if not torch.equal(rms_norm(sample, weight, epsilon), original(sample)):
            return 0

    def forward(x: Any) -> Any:
        return rms_norm(x, weight, epsilon) if not weight.requires_grad else original(x)

    norm.forward = forward
    return 1


def _narrow_last_layer(model: Any, state: PackedState) -> int:
    """The last layer's output matters at the kept places only: its MLP is computed nowhere else."""
    layers = _decoder_layers(model)
    mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
    if mlp is None:
        return 0
    original = mlp.forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        kept = state.kept
        if kept is None:
            return original(x, *args, **kwargs)
        part = original(x.index_select(1, kept), *args, **kwargs)
        return x.new_zeros(x.shape).index_copy(1, kept, part)

    mlp.forward = forward
    return 1


def _fuse_head(model: Any, state: PackedState) -> int:
    import torch

    from fenlei.modeling.fused_ops import head_scores

    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or head.weight.requires_grad:
        return 0
    original = head.forward

    def forward(hidden: Any) -> Any:
        if state.pairs is not None:
            return head_scores(hidden, head.weight, *state.pairs)
        return original(hidden)

    head.forward = forward
    return 1


def _decoder_layers(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    return getattr(decoder, "layers", None)


def _probe(width: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, _PROBE_TOKENS, width, generator=generator).to(like.device, dtype)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    import torch

    tolerance = 4 * torch.finfo(expected.dtype).eps
    size = float(expected.float().abs().max())
    return bool((found.float() - expected.float()).abs().max() <= tolerance * max(size, 1e-6) * 4)
