"""Attention of a packed sequence by FlashAttention's kernel for rows of different lengths.

Every row is a segment: its queries are where they lie in the packed sequence, its keys are the shared tokens and its
own, laid out one row after the other. Where a segment has more keys than queries, the kernel's causal mask is aligned
at their ends (FlashAttention 2.1 and later), which is what a row behind shared tokens needs. Nothing is padded and no
mask is stored. The engine compares the first step with separate rows, as with every other attention.

Not measured here: see benchmarks/gpu.sh.

Shape letters as in :mod:`fenlei.modeling.packed`; L keys of all segments together, Z key heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fenlei.errors import ModelError

if TYPE_CHECKING:
    from fenlei.modeling.packed import PackedLayout

FLASH_MISSING = (
    "speed.attention=flash: neither this torch ({version}) nor a package brings FlashAttention for rows of different "
    "lengths: pip install -U 'torch>=2.13' or pip install flash-attn; or take speed.attention=auto"
)


@dataclass(frozen=True)
class Segments:
    """Rows of a packed sequence for one call of the kernel.

    Attributes:
        shared: P.
        keys: places of the keys, ``(L,)``.
        first: which of them are the shared tokens, ``(segments, P)``; the segment of the shared tokens itself counts.
        own: which of them are the other tokens, in the order of the sequence, ``(N - P,)``.
        query_ends: 0 and the end of each segment's queries, int32.
        key_ends: the same of its keys.
        longest_query: most queries of a segment.
        longest_key: most keys of a segment.
        kernel: see :func:`flash_kernel`.
    """

    shared: int
    keys: torch.Tensor
    first: torch.Tensor
    own: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    kernel: Callable[..., torch.Tensor]


def segments_of(layout: PackedLayout, kernel: Callable[..., torch.Tensor]) -> Segments:
    """The segments of a layout, on its device: the shared tokens, if any, and each row."""
    shared, lengths = layout.shared, layout.lengths
    beginning = list(range(shared))
    keys = list(beginning)
    first: list[list[int]] = []
    own: list[int] = []
    queries, ends = [shared] if shared else [], []
    if shared:
        first.append(list(beginning))
        ends.append(shared)
    for start, length in zip(layout.starts, lengths, strict=True):
        first.append([len(keys) + i for i in range(shared)])
        keys += beginning
        own += range(len(keys), len(keys) + length)
        keys += range(start, start + length)
        queries.append(length)
        ends.append(shared + length)

    device = layout.positions.device

    def sums(sizes: list[int]) -> torch.Tensor:
        return torch.tensor([0, *sizes], device=device).cumsum(0).to(torch.int32)

    return Segments(
        shared,
        torch.tensor(keys, device=device),
        torch.tensor(first, device=device).view(len(first), shared),
        torch.tensor(own, device=device),
        sums(queries),
        sums(ends),
        max(queries),
        max(ends),
        kernel,
    )


class _TakeKeys(torch.autograd.Function):
    """``(N, Z, D)`` -> ``(L, Z, D)``; the gradient of a shared token is summed in float32, in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        ctx.segments = segments
        return x.index_select(0, segments.keys)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        s: Segments = ctx.segments
        own = grad.index_select(0, s.own)
        if not s.shared:
            return own, None
        first = grad.index_select(0, s.first.flatten()).view(*s.first.shape, *grad.shape[1:])
        return torch.cat([first.float().sum(0).to(grad.dtype), own]), None


def attend_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float, window: int | None
) -> torch.Tensor:
    """As :func:`fenlei.modeling.packed_attention.attend`: ``(H, N, D)``, ``(Z, N, D)`` -> ``(N, H, D)``."""
    keys = _TakeKeys.apply(key.transpose(0, 1), segments)
    values = _TakeKeys.apply(value.transpose(0, 1), segments)
    return segments.kernel(query.transpose(0, 1), keys, values, segments, scale, window)


def flash_kernel(
    wanted: str, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[..., torch.Tensor] | None, str]:
    """The kernel for packed rows, if there is one, and what is used, in words.

    torch brings FlashAttention 2 since 2.10, with grouped key heads since 2.13; the package flash-attn serves older
    ones. Both need 16-bit numbers and a GPU of the generation of 2020 (Ampere) or later.

    Args:
        wanted: ``speed.attention``.
        device: where the model is.
        dtype: number format of the model.

    Raises:
        ModelError: FlashAttention is asked for and cannot be had; says why and what to do.
    """
    if wanted == "sdpa":
        return None, "scaled_dot_product_attention"
    reason = _cannot_flash(device, dtype)
    if reason is None:
        if (kernel := _from_torch()) is not None:
            return kernel, f"FlashAttention of torch {torch.__version__}"
        if (kernel := _from_package()) is not None:
            return kernel, "FlashAttention of the package flash-attn"
        reason = FLASH_MISSING.format(version=torch.__version__)
    if wanted == "flash":
        raise ModelError(reason)
    return None, "scaled_dot_product_attention"


def _cannot_flash(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"speed.attention=flash needs a CUDA GPU, the model is on {device}: take speed.attention=auto"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"speed.attention=flash needs model.dtype=bfloat16, it is {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "speed.attention=flash needs a GPU of compute capability 8.0 or later: take speed.attention=auto"
    return None


def _from_torch() -> Callable[..., torch.Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        return None

    def kernel(q: Any, k: Any, v: Any, s: Segments, scale: float, window: int | None) -> torch.Tensor:
        # (-1, 0) is causal; a window counts the keys before the query itself
        sizes = (-1 if window is None else window - 1, 0)
        ends = (s.query_ends, s.key_ends, s.longest_query, s.longest_key)
        return varlen_attn(q, k, v, *ends, scale=scale, window_size=sizes, enable_gqa=q.shape[1] != k.shape[1])

    return kernel


def _from_package() -> Callable[..., torch.Tensor] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None

    def kernel(q: Any, k: Any, v: Any, s: Segments, scale: float, window: int | None) -> torch.Tensor:
        sizes = (-1 if window is None else window - 1, -1 if window is None else 0)
        ends = (s.query_ends, s.key_ends, s.longest_query, s.longest_key)
        return flash_attn_varlen_func(q, k, v, *ends, softmax_scale=scale, causal=True, window_size=sizes)

    return kernel
