"""Attention over rows that lie one after the other in one sequence, through transformers' attention interface.

A packed pass is one sequence of all rows' tokens, with positions that begin anew in each. Linear layers see no padding,
and attention stays inside a row: on CPU by `scaled_dot_product_attention` over blocks of rows of about the same length,
on GPUs by FlashAttention's variable-length kernel where it is installed. Rows that share their beginning: see
`tree_attention.py`. No mask of the whole pass exists. What a model needs to know of the rows goes through its layers as
keyword arguments, as transformers passes those of FlashAttention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn import functional

from funicular.actors.layout import Layout
from funicular.actors.row_blocks import RowBlock, from_rows, row_blocks, to_rows
from funicular.actors.tree_attention import tree_attention
from funicular.actors.tree_blocks import TreeBatches, tree_batches

ROWS_ATTENTION = "funicular_rows"
"""Name of this module's function among transformers' attention implementations."""
FLASH_ATTENTION = "flash_attention_2"

_QUERY_CHUNK = 512
"""Queries of one row that are scored at the same time where a kernel takes no window or soft-cap."""


def attention_arguments(implementation: str, layout: Layout, device: torch.device) -> dict[str, Any]:
    """Keyword arguments for a model's forward pass over packed rows."""
    if implementation == ROWS_ATTENTION:
        if layout.shares:
            return {"tree_batches": tree_batches(layout, device)}
        return {"row_blocks": row_blocks(layout.lengths, device)}
    if layout.shares:
        raise ValueError(f"{implementation} knows no rows that share their beginnings")
    bounds = torch.tensor(list(accumulate(layout.lengths, initial=0)), dtype=torch.int32, device=device)
    longest = max(layout.lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def rows_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    row_blocks: tuple[RowBlock, ...] = (),
    tree_batches: TreeBatches | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each row; an attention function of transformers.

    Args:
        query: (1, heads, T, d) of all rows.
        key, value: (1, key heads, T, d); key heads divide heads.
        sliding_window: keys that a query sees, itself included.
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        row_blocks: of the pass's rows, where they share nothing.
        tree_batches: of its spans, where rows share their beginnings.
        options: what else a model passes on, for other implementations; attention sinks and biases are refused.

    Returns:
        (1, T, heads, d), and no weights.

    Raises:
        ValueError: the model did not pass the rows on, or wants what is not done here.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    told = bool(row_blocks) or tree_batches is not None
    if not told or attention_mask is not None or not causal or dropout or query.shape[0] != 1:
        raise ValueError(f"{type(module).__name__} does not call attention over packed rows as expected")
    if wanted := [name for name in ("s_aux", "position_bias", "cache") if options.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} needs {wanted[0]}, which attention over packed rows has not")
    if tree_batches is not None and (sliding_window is not None or softcap is not None):
        kind = "sliding windows" if softcap is None else "soft-capped scores"
        raise ValueError(f"{type(module).__name__} has {kind}, which a shared prompt is not computed with")
    dtype = _multiplied_in(value)
    tensors = (query[0].to(dtype), key[0].to(dtype), value[0].to(dtype))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(value.device.type, enabled=False):
        if tree_batches is not None:
            out = tree_attention(*tensors, tree_batches, scale=scale)
        else:
            out = _each_row(*tensors, row_blocks, scale=scale, window=sliding_window, softcap=softcap)
    return out.to(value.dtype)[None], None


def _multiplied_in(value: torch.Tensor) -> torch.dtype:
    """The values' type, but float32 on a CPU: there the kernel's backward pass in bfloat16 takes four times as long."""
    return torch.promote_types(value.dtype, torch.float32) if value.device.type == "cpu" else value.dtype


def _each_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Sequence[RowBlock],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """(heads, T, d) to (T, heads, d)."""
    outputs = []
    for block in blocks:
        q, k, v = (to_rows(tensor[:, block.start : block.end], block) for tensor in (query, key, value))
        if softcap is None and (window is None or block.width <= window):
            gqa = q.shape[1] != k.shape[1]
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        else:
            out = _chunked(q, k, v, scale=scale, window=window, softcap=softcap)
        outputs.append(from_rows(out, block))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Queries chunk by chunk against the keys that any of them sees: rows x window, not rows x rows."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    places = torch.arange(q.shape[2], device=q.device)
    outputs = []
    for start, end in pairwise([*range(0, q.shape[2], _QUERY_CHUNK), q.shape[2]]):
        first = 0 if window is None else max(0, start + 1 - window)
        distance = places[start:end, None] - places[None, first:end]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        parts = q[:, :, start:end], k[:, :, first:end], v[:, :, first:end]
        if softcap is None:
            outputs.append(functional.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale))
        else:
            outputs.append(_soft_capped(*parts, seen, scale, softcap))
    return torch.cat(outputs, 2)


def _soft_capped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scale / softcap))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights.to(v.dtype) @ v
