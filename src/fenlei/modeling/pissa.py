"""PiSSA: an adapter that begins as the principal part of each weight (Meng et al. 2024, arXiv:2404.02948).

The paper splits a weight W into its r largest singular directions, ``s B0 A0``, and a residual, and trains A and B from
B0 and A0 on the frozen residual: ``W x - s B0 A0 x + s B A x``. Here the residual is never formed. The adapter has rank
2r, ``s [B, -B0] [A; A0]``, and only its first half is trained. That is the same function and the same gradient, and

- the base model keeps its own weights: a residual rounded to bfloat16 would differ from them by up to 1/512 of each
  element, and predictions in training from those of the saved classifier;
- what is trained is a plain LoRA adapter: the saved classifier goes on any copy of the base model;
- a checkpoint holds the start too, so that a resumed run does not depend on finding the same decomposition again.

Shape letters: O outputs, I inputs, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError

if TYPE_CHECKING:
    import torch

# A randomized decomposition: seconds for a 0.5B model where the exact one takes most of a minute. Power iterations and
# some directions to spare make the leading ones exact enough; the method only needs a good start.
_ITERATIONS = 4
_SPARE = 8


def start_from_principal_part(model: Any, rank: int, scale: float) -> None:
    """Fills fresh adapters of rank 2r and freezes their second halves.

    Args:
        model: a PEFT model whose adapters have rank ``2 * rank``.
        rank: r.
        scale: s, the factor of the adapter's product.

    Raises:
        ModelError: a layer is smaller than the rank.
    """
    import torch

    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        weight = module.get_base_layer().weight
        if rank > min(weight.shape):
            raise ModelError(
                f"lora.r={rank}: {name} has only {min(weight.shape)} singular directions ({weight.shape[0]} x "
                f"{weight.shape[1]}); lora.method=pissa needs a smaller lora.r"
            )
        (a,), (b,) = module.lora_A.values(), module.lora_B.values()
        with torch.no_grad():
            start_a, start_b = principal_part(weight, rank, scale)
            a.weight.copy_(torch.cat([start_a, start_a]))
            b.weight.copy_(torch.cat([start_b, -start_b], dim=1))
        _freeze(a.weight, slice(rank, None), 0)
        _freeze(b.weight, slice(rank, None), 1)


def principal_part(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``A`` ``(r, I)`` and ``B`` ``(O, r)``, float32; ``scale * B A`` is near the best of rank r (eq. 2, 3)."""
    import torch

    spare = min(rank + _SPARE, *weight.shape)
    u, s, v = torch.svd_lowrank(weight.float(), q=spare, niter=_ITERATIONS)
    root = (s[:rank] / scale).sqrt()
    return (v[:, :rank] * root).T, u[:, :rank] * root


def _freeze(parameter: torch.nn.Parameter, part: slice, dim: int) -> None:
    """Keeps a part of a parameter as it is: its gradient is 0, and AdamW without decay leaves such elements alone."""

    def clear(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad[(slice(None),) * dim + (part,)] = 0
        return grad

    parameter.register_hook(clear)
    # so that the number of trained parameters can be told
    parameter.frozen_elements = parameter[(slice(None),) * dim + (part,)].numel()  # type: ignore[attr-defined]
