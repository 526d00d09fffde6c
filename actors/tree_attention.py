"""Attention where rows share their beginnings: each span to itself, and the spans behind a shared one to all of it.

A token's keys are thus in several parts, its own span and those that this one goes on from. Each part is one call of a
kernel for all that see it: the queries of a group's completions, one after the other, are one long query to the prompt.
No mask of the pass exists. The parts are joined by their logsumexps (`attention_kernels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from funicular.actors.attention_kernels import attend, gradients
from funicular.actors.layout import SharedSpan
from funicular.actors.row_blocks import RowBlock, from_rows, to_rows


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Sequence[RowBlock],
    shared: Sequence[SharedSpan],
    *,
    scale: float,
) -> torch.Tensor:
    """(heads, T, d) queries, (key heads, T, d) keys and values to (T, heads, d).

    Args:
        blocks: of all spans.
        shared: the spans that others go on from.
    """
    out: torch.Tensor = _TreeAttention.apply(query, key, value, tuple(blocks), tuple(shared), scale)
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: tuple[RowBlock, ...],
        shared: tuple[SharedSpan, ...],
        scale: float,
    ) -> torch.Tensor:
        heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        logsumexp = query.new_empty(tokens, heads, dtype=torch.promote_types(query.dtype, torch.float32))
        for block in blocks:
            own = slice(block.start, block.end)
            parts = [to_rows(tensor[:, own], block) for tensor in (query, key, value)]
            of_rows, lse = attend(*parts, causal=True, scale=scale)
            out[own] = from_rows(of_rows, block)
            logsumexp[own] = from_rows(lse[..., None], block)[..., 0]
        for span in shared:
            seen, behind = slice(span.start, span.end), slice(span.end, span.last)
            of_span, lse = attend(
                query[None, :, behind], key[None, :, seen], value[None, :, seen], causal=False, scale=scale
            )
            _join(out[behind], logsumexp[behind], of_span[0].transpose(0, 1), lse[0].transpose(0, 1))
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.blocks, ctx.shared, ctx.scale = blocks, shared, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, out, logsumexp = ctx.saved_tensors
        grad, out, logsumexp = grad.transpose(0, 1), out.transpose(0, 1), logsumexp.transpose(0, 1)
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for block in ctx.blocks:
            own = slice(block.start, block.end)
            q, k, v, o = (to_rows(tensor[:, own], block) for tensor in (query, key, value, out))
            lse = to_rows(logsumexp[:, own, None], block)[..., 0]
            of_grad = to_rows(grad[:, own], block, repeated=False)  # padded queries see padded keys, and do not count
            found = gradients(of_grad, q, k, v, o, lse, causal=True, scale=ctx.scale)
            for total, part in zip(grads, found, strict=True):
                total[:, own] = from_rows(part, block).transpose(0, 1)
        for span in ctx.shared:
            seen, behind = slice(span.start, span.end), slice(span.end, span.last)
            found = gradients(
                grad[None, :, behind],
                query[None, :, behind],
                key[None, :, seen],
                value[None, :, seen],
                out[None, :, behind],
                logsumexp[None, :, behind],
                causal=False,
                scale=ctx.scale,
            )
            for total, part, places in zip(grads, found, (behind, seen, seen), strict=True):
                total[:, places] += part[0]
        return *grads, None, None, None


def _join(out: torch.Tensor, logsumexp: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> None:
    """Take another part into (L, heads, d) and (L, heads), in place."""
    joint = torch.logaddexp(logsumexp, other_lse)
    own_weight, other_weight = (logsumexp - joint).exp()[..., None], (other_lse - joint).exp()[..., None]
    out.copy_(out * own_weight + other * other_weight)
    logsumexp.copy_(joint)
