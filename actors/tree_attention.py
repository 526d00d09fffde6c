"""Attention where rows share their beginnings: each span to itself, and the spans behind a shared one to all of it.

A token's keys are thus in several parts, its own span and those that this one goes on from. Each part is one call of a
kernel for all that see it: the queries of a group's completions, one after the other, are one long query to the prompt,
and spans of about the same length share a call (`tree_blocks.py`). No mask of the pass exists. The parts are joined by
their logsumexps (`attention_kernels.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from funicular.actors.attention_kernels import attend, gradients
from funicular.actors.tree_blocks import Stretches, TreeBatches


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batches: TreeBatches, *, scale: float
) -> torch.Tensor:
    """(heads, T, d) queries, (key heads, T, d) keys and values to (T, heads, d)."""
    by_token = (tensor.transpose(0, 1) for tensor in (query, key, value))
    out: torch.Tensor = _TreeAttention.apply(*by_token, batches, scale)
    return out


class _TreeAttention(torch.autograd.Function):
    """All of (T, heads, d): a token's heads lie together in memory, and are taken to their batch as one."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batches: TreeBatches, scale: float
    ) -> torch.Tensor:
        out = query.new_empty(query.shape)
        logsumexp = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for spans in batches.own:
            of_rows, lse = attend(spans.take(query), spans.take(key), spans.take(value), causal=True, scale=scale)
            spans.put(out, of_rows)
            spans.put(logsumexp[..., None], lse[..., None])
        for shared in batches.shared:
            queries, keys = shared.queries, shared.keys
            of_rows, lse = attend(
                queries.take(query), keys.take(key), keys.take(value), keys.seen(query.dtype), scale=scale
            )
            _join(out, logsumexp[..., None], queries, of_rows, lse[..., None])
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.batches, ctx.scale = batches, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, out, logsumexp = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for spans in ctx.batches.own:
            found = gradients(
                spans.take_gradient(grad),  # padded queries see padded keys, and do not count
                spans.take(query),
                spans.take(key),
                spans.take(value),
                spans.take(out),
                spans.take(logsumexp[..., None])[..., 0],
                causal=True,
                scale=ctx.scale,
            )
            for total, part in zip(grads, found, strict=True):
                spans.put(total, part)
        for shared in ctx.batches.shared:
            queries, keys = shared.queries, shared.keys
            found = gradients(
                queries.take_gradient(grad),
                queries.take(query),
                keys.take(key),
                keys.take(value),
                queries.take(out),
                queries.take(logsumexp[..., None])[..., 0],
                keys.seen(query.dtype),
                scale=ctx.scale,
            )
            for total, part, places in zip(grads, found, (queries, keys, keys), strict=True):
                places.add(total, part)
        return *grads, None, None


def _join(
    out: torch.Tensor, logsumexp: torch.Tensor, queries: Stretches, other: torch.Tensor, other_lse: torch.Tensor
) -> None:
    """Take another part, rows of these queries with (..., 1) logsumexps, into (T, heads, d) and (T, heads, 1)."""
    lse = queries.take(logsumexp)
    weight = (other_lse - lse).sigmoid().to(out.dtype)
    queries.put(out, torch.lerp(queries.take(out), other, weight))
    queries.put(logsumexp, torch.logaddexp(lse, other_lse))
