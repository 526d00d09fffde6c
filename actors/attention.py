"""Attention over rows that lie one after the other in one sequence, through transformers' attention interface.

A packed pass is one sequence of all rows' tokens, with positions that begin anew in each. Linear layers see no padding,
and attention stays inside a row: on CPU by `scaled_dot_product_attention` over blocks of rows of about the same length,
on GPUs by FlashAttention's variable-length kernel where it is installed. No mask of the whole pass exists. What a model
needs to know of the rows goes through its layers as keyword arguments, as transformers passes those of FlashAttention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS_ATTENTION = "funicular_rows"
"""Name of this module's function among transformers' attention implementations."""
FLASH_ATTENTION = "flash_attention_2"

_WASTE = 0.25
_FREE_WASTE = 4096
"""Padded pairs of tokens that cost less than a call of its own for a row."""
_QUERY_CHUNK = 512
"""Queries of one row that are scored at the same time where a kernel takes no window or soft-cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Neighbouring rows whose attention is one call: (rows, width), padded on the right where rows are shorter."""

    start: int
    end: int
    rows: int
    width: int
    to_padded: torch.Tensor | None
    """(rows * width,) token of each place, counted from `start`; None: all rows have this width."""
    to_packed: torch.Tensor | None
    """(end - start,) place of each token."""


def row_blocks(lengths: Sequence[int], device: torch.device) -> tuple[RowBlock, ...]:
    """Cut rows, in their order, into blocks that waste at most a quarter of their pairs of tokens on padding."""
    blocks = []
    start = 0
    for block in _cut(lengths):
        end = start + sum(block)
        width = max(block)
        to_padded = to_packed = None
        if min(block) < width:
            starts = torch.tensor(list(accumulate(block, initial=0))[:-1])
            places = torch.arange(width)
            lasts = torch.tensor(block)[:, None] - 1
            to_padded = (starts[:, None] + torch.minimum(places, lasts)).reshape(-1).to(device)
            to_packed = (places <= lasts).reshape(-1).nonzero()[:, 0].to(device)
        blocks.append(
            RowBlock(start=start, end=end, rows=len(block), width=width, to_padded=to_padded, to_packed=to_packed)
        )
        start = end
    return tuple(blocks)


def _cut(lengths: Sequence[int]) -> Iterator[list[int]]:
    block: list[int] = []
    pairs = 0
    for length in lengths:
        padded = (len(block) + 1) * max([*block[:1], *block, length]) ** 2
        used = pairs + length**2
        if block and padded - used > _WASTE * used + _FREE_WASTE:
            yield block
            block, pairs = [], 0
        block.append(length)
        pairs += length**2
    if block:
        yield block


def attention_arguments(implementation: str, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Keyword arguments for a model's forward pass over packed rows."""
    if implementation == ROWS_ATTENTION:
        return {"row_blocks": row_blocks(lengths, device)}
    bounds = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def packed_positions(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """(1, T) positions that begin anew in each row."""
    return torch.cat([torch.arange(length, device=device) for length in lengths])[None]


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
    row_blocks: tuple[RowBlock, ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each row; an attention function of transformers.

    Args:
        query: (1, heads, T, d) of all rows.
        key, value: (1, key heads, T, d); key heads divide heads.
        sliding_window: keys that a query sees, itself included.
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        options: what else a model passes on, for other implementations; attention sinks and biases are refused.

    Returns:
        (1, T, heads, d), and no weights.

    Raises:
        ValueError: the model did not pass the rows on, or wants what is not done here.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if row_blocks is None or attention_mask is not None or not causal or dropout or query.shape[0] != 1:
        raise ValueError(f"{type(module).__name__} does not call attention over packed rows as expected")
    if wanted := [name for name in ("s_aux", "position_bias", "cache") if options.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} needs {wanted[0]}, which attention over packed rows has not")
    tensors = (query[0], key[0], value[0])
    outputs = []
    for block in row_blocks:
        q, k, v = (_to_rows(tensor[:, block.start : block.end], block) for tensor in tensors)
        if softcap is None and (sliding_window is None or block.width <= sliding_window):
            gqa = q.shape[1] != k.shape[1]
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
        else:
            out = _chunked(q, k, v, scaling=scaling, window=sliding_window, softcap=softcap)
        outputs.append(_from_rows(out, block))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scaling: float | None,
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
            outputs.append(functional.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scaling))
        else:
            outputs.append(_soft_capped(*parts, seen, scaling, softcap))
    return torch.cat(outputs, 2)


def _soft_capped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scaling: float | None, softcap: float
) -> torch.Tensor:
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scale / softcap))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def _to_rows(tensor: torch.Tensor, block: RowBlock) -> torch.Tensor:
    """(heads, tokens, d) of a block to (rows, heads, width, d)."""
    if block.to_padded is not None:
        tensor = _Pad.apply(tensor, block.to_padded, block.to_packed)
    return tensor.unflatten(1, (block.rows, block.width)).transpose(0, 1)


def _from_rows(tensor: torch.Tensor, block: RowBlock) -> torch.Tensor:
    """(rows, heads, width, d) to (tokens, heads, d) of a block."""
    tokens = tensor.transpose(1, 2).flatten(0, 1)
    return tokens if block.to_packed is None else tokens.index_select(0, block.to_packed)


class _Pad(torch.autograd.Function):
    """Repeat each row's last token up to the block's width. Padded places come after all that their row's tokens see,
    and nothing is made of their own outputs: their gradient is 0, so that the backward pass drops it, unsummed."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, to_padded: torch.Tensor, to_packed: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(to_packed)
        return tensor.index_select(1, to_padded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (to_packed,) = ctx.saved_tensors
        return grad.index_select(1, to_packed), None, None
