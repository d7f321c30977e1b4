"""Attention of a packed sequence: block by block, every row on the shared tokens and itself.

On the CPU the products are matrix products of our own: queries times keys and the softmax in float32, the others in
the model's number format. torch's fused CPU kernel keeps everything in float32 and was measured to take 2.5 to 3 times
as long (docs/benchmarks.md). Elsewhere torch's scaled_dot_product_attention does the work.

Shape letters as in :mod:`fenlei.modeling.packed`; Z key heads, G query heads a key head, so H = Z * G.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fenlei.modeling.packed import AttentionBlock, PackedLayout


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Softmax attention of a packed sequence.

    Args:
        query: ``(H, N, D)``.
        key: ``(Z, N, D)``, Z a divisor of H; more than N tokens where some were computed before.
        value: likewise.
        layout: which query looks at which keys.
        scale: factor of the scores.
        window: a query sees this many keys up to itself; None: all.

    Returns:
        ``(N, H, D)``.
    """
    if layout.segments is not None:
        from fenlei.modeling.varlen import attend_segments

        return attend_segments(query, key, value, layout.segments, scale, window)
    if query.device.type == "cpu":
        return _CpuAttention.apply(query, key, value, layout, scale, window)
    return _sdpa(query, key, value, layout, scale, window)


def _gather(x: torch.Tensor, places: torch.Tensor, groups: int) -> torch.Tensor:
    """``(Z*G, N, D)`` at ``(B, S)`` places -> ``(B*Z, G*S, D)``."""
    heads, _, width = x.shape
    rows, size = places.shape
    taken = x.index_select(1, places.flatten()).view(heads, rows, size, width)
    return taken.transpose(0, 1).reshape(rows * heads // groups, groups * size, width)


def _scatter_back(x: torch.Tensor, block: AttentionBlock, heads: int) -> torch.Tensor:
    """``(B*Z, G*S, D)`` -> ``(n, H, D)``: the queries that are no padding."""
    rows, size = block.queries.shape
    flat = x.view(rows, heads, size, -1).transpose(1, 2).reshape(rows * size, heads, -1)
    return flat.index_select(0, block.valid)


def _softmax_scores(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Probabilities ``(B*Z, G*S, K)`` from ``(B*Z, G*S, D)`` and ``(B*Z, K, D)``.

    The scores are float32: they reach tens, where bfloat16 would round them by 0.1.
    """
    rows, size, count = bias.shape
    with _exact_products_of(dtype):
        scores = torch.bmm(query.float(), key.float().transpose(1, 2))
    by_row = scores.view(rows, -1, size, count)
    torch.add(bias[:, None], by_row, alpha=scale, out=by_row)
    return torch.softmax(scores, dim=-1).to(dtype)


@contextmanager
def _exact_products_of(dtype: torch.dtype) -> Iterator[None]:
    """Float32 products of numbers that came from bfloat16: the processor's bfloat16 units give them exactly.

    They round their inputs to bfloat16, which changes nothing here, multiply, and add up in float32: the same sums in
    half the time (docs/benchmarks.md).
    """
    before = torch.get_float32_matmul_precision()
    if dtype != torch.bfloat16 or before == "medium":
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _CpuAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: PackedLayout,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        heads, length, _ = query.shape
        groups = heads // key.shape[0]
        out = query.new_empty(length, heads, value.shape[-1])
        trains, saved = any(ctx.needs_input_grad), []
        for block in layout.blocks:
            q = _gather(query, block.queries, groups)
            k, v = _gather(key, block.keys, 1), _gather(value, block.keys, 1)
            p = _softmax_scores(q, k, layout.bias(block, window), scale, query.dtype)
            out[block.places] = _scatter_back(torch.bmm(p, v), block, heads)
            if trains:  # a layer's probabilities of one long text would take gigabytes
                saved.append(p)
        if trains:
            ctx.save_for_backward(query, key, value, *saved)
            ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        query, key, value, *saved = ctx.saved_tensors
        heads, length, width = query.shape
        kv_heads, count_keys = key.shape[:2]
        groups = heads // kv_heads
        by_head = grad.transpose(0, 1)  # (H, N, D)
        d_query = query.new_empty(length, heads, width)
        # the shared tokens receive a sum over the rows: in float32, as one long row would have it
        d_key = torch.zeros(count_keys, kv_heads, width, dtype=torch.float32)
        d_value = torch.zeros(count_keys, kv_heads, value.shape[-1], dtype=torch.float32)
        for block, p in zip(ctx.layout.blocks, saved, strict=True):
            rows, size = block.queries.shape
            q = _gather(query, block.queries, groups)
            k, v = _gather(key, block.keys, 1), _gather(value, block.keys, 1)
            d_out = _gather(by_head, block.queries, groups)
            if len(block.valid) != rows * size:
                mask = torch.zeros(rows * size, dtype=torch.bool)
                mask[block.valid] = True
                d_out.view(rows, heads, size, -1).masked_fill_(~mask.view(rows, 1, size, 1), 0.0)
            d_p = torch.bmm(d_out, v.transpose(1, 2))
            d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_query[block.places] = _scatter_back(torch.bmm(d_s, k).mul_(ctx.scale), block, heads)
            for total, part in (
                (d_key, torch.bmm(d_s.transpose(1, 2), q).mul_(ctx.scale)),
                (d_value, torch.bmm(p.transpose(1, 2), d_out)),
            ):
                count = block.keys.shape[1]
                flat = part.view(rows, kv_heads, count, -1).transpose(1, 2).reshape(rows * count, kv_heads, -1)
                total.index_add_(0, block.keys.flatten(), flat.float())
        return (
            d_query.transpose(0, 1),
            d_key.to(key.dtype).transpose(0, 1),
            d_value.to(value.dtype).transpose(0, 1),
            None,
            None,
            None,
        )


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, scale: float, window: int | None
) -> torch.Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    heads, length, _ = query.shape
    out = query.new_empty(length, heads, value.shape[-1])
    for block in layout.blocks:
        rows, size = block.queries.shape
        q, k, v = (
            x.index_select(1, places.flatten()).view(x.shape[0], rows, places.shape[1], -1).transpose(0, 1)
            for x, places in ((query, block.queries), (key, block.keys), (value, block.keys))
        )
        # with a mask, CUDA's fast kernels take no groups of heads: enable_gqa would store all scores
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        seen = (layout.bias(block, window) == 0)[:, None]
        part = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        flat = part.transpose(1, 2).reshape(rows * size, heads, -1)
        out = out.index_copy(0, block.places, flat.index_select(0, block.valid))
    return out
