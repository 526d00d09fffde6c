"""Rows of a packed pass, cut into blocks of about the same length whose attention is one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from funicular.actors.padding import may_join


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
    """Cut rows, in their order, into blocks of which little is padding (`padding.py`)."""
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
    pairs = padded = 0
    for length in lengths:
        with_it = (len(block) + 1) * max([length, *block]) ** 2
        if block and not may_join(length**2, batch_pairs=pairs, padded_before=padded, padded_after=with_it):
            yield block
            block, pairs, with_it = [], 0, length**2
        block.append(length)
        pairs += length**2
        padded = with_it
    if block:
        yield block


def to_rows(tensor: torch.Tensor, block: RowBlock) -> torch.Tensor:
    """(heads, tokens, d) of a block to (rows, heads, width, d); padded places have their row's last token."""
    if block.to_padded is not None and block.to_packed is not None:
        tensor = _Pad.apply(tensor, block.to_padded, block.to_packed)
    return tensor.unflatten(1, (block.rows, block.width)).transpose(0, 1)


def from_rows(tensor: torch.Tensor, block: RowBlock) -> torch.Tensor:
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
