"""What is done to a tile of logits on a GPU, one Triton kernel for each pass instead of ten of torch's.

The same arithmetic as `token_logprobs.py` without a soft-cap, which does it in torch everywhere else. A tile is read
once and written at most once; at 20,000 tokens x 151,936 words in bfloat16 that is most of the head's time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FORWARD_BLOCK = 4096
_BACKWARD_BLOCK = 1024


@triton.jit
def _add_tile(
    raw,
    raw_stride,
    labels,
    peaks,
    masses,
    moments,
    chosen,
    width,
    factor,
    BLOCK: tl.constexpr,
):
    """One program a token: fold its row of a tile into the token's online sums."""
    row = tl.program_id(0).to(tl.int64)
    row_start = raw + row * raw_stride
    peak = tl.load(peaks + row)
    mass = tl.load(masses + row)
    moment = tl.load(moments + row)
    for start in range(0, width, BLOCK):
        words = start + tl.arange(0, BLOCK)
        inside = words < width
        logits = tl.load(row_start + words, mask=inside, other=0.0) * factor
        logits = tl.where(inside, logits, -float("inf"))
        greatest = tl.maximum(peak, tl.max(logits, axis=0))
        drop = peak - greatest
        shrink = tl.exp(drop)
        shifted = logits - greatest
        terms = tl.exp(shifted)
        moment = (moment + drop * mass) * shrink + tl.sum(tl.where(inside, terms * shifted, 0.0), axis=0)
        mass = mass * shrink + tl.sum(terms, axis=0)
        peak = greatest
    tl.store(peaks + row, peak)
    tl.store(masses + row, mass)
    tl.store(moments + row, moment)
    label = tl.load(labels + row)
    if (label >= 0) & (label < width):
        tl.store(chosen + row, tl.load(row_start + label) * factor)


@triton.jit
def _grad_tile(
    raw,
    raw_stride,
    grad,
    grad_stride,
    labels,
    logsumexps,
    entropies,
    grad_logprobs,
    grad_entropies,
    width,
    factor,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each block of a token's row: the gradient in the products."""
    row = tl.program_id(0).to(tl.int64)
    words = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = words < width
    logp = tl.load(raw + row * raw_stride + words, mask=inside, other=0.0) * factor - tl.load(logsumexps + row)
    p = tl.exp(logp)
    of_label = tl.where(words == tl.load(labels + row), 1.0, 0.0)
    out = tl.load(grad_logprobs + row) * (of_label - p)
    if HAS_ENTROPY:
        out -= tl.load(grad_entropies + row) * p * (logp + tl.load(entropies + row))
    out = (out * factor).to(grad.dtype.element_ty)
    tl.store(grad + row * grad_stride + words, out, mask=inside)


def add_tile(
    raw: torch.Tensor,
    factor: float,
    local_labels: torch.Tensor,
    peaks: torch.Tensor,
    masses: torch.Tensor,
    moments: torch.Tensor,
    chosen: torch.Tensor,
) -> None:
    """Fold a tile's logits `factor * raw` into the tokens' online sums, in place.

    Args:
        raw: (n, v) float32 products.
        local_labels: (n,) labels, counted from the tile's first word; they may lie outside.
        peaks, masses, moments, chosen: (n,) float32, contiguous: the sums of `_OnlineSums`.
    """
    tokens, width = raw.shape
    _add_tile[(tokens,)](
        raw, raw.stride(0), local_labels, peaks, masses, moments, chosen, width, factor, BLOCK=_FORWARD_BLOCK
    )


def grad_of_tile(
    raw: torch.Tensor,
    factor: float,
    local_labels: torch.Tensor,
    logsumexps: torch.Tensor,
    entropies: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropies: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(n, v) gradient in the products `raw`, in `dtype`. Arguments as `add_tile`; (n,) float32 each."""
    tokens, width = raw.shape
    grad = torch.empty(tokens, width, dtype=dtype, device=raw.device)
    has_entropy = grad_entropies is not None
    _grad_tile[(tokens, triton.cdiv(width, _BACKWARD_BLOCK))](
        raw,
        raw.stride(0),
        grad,
        grad.stride(0),
        local_labels,
        logsumexps,
        entropies,
        grad_logprobs.contiguous(),
        grad_entropies.contiguous() if grad_entropies is not None else grad_logprobs,
        width,
        factor,
        HAS_ENTROPY=has_entropy,
        BLOCK=_BACKWARD_BLOCK,
    )
    return grad
