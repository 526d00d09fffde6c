"""Log-probabilities and entropies from hidden states, without logits of all tokens and words at the same time.

The output head's logits exist one tile of tokens x vocabulary at a time. The forward pass keeps four numbers a token
(online logsumexp, as in FlashAttention 2205.14135 and Cut Your Losses 2411.09009), the backward pass computes each tile
again. Both walk the vocabulary outside and the tokens inside, so that a tile of the weight is cast once, and the
weight's gradient is summed in float32 without a float32 copy of the whole weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """What a model does to its output head's products x: softcap * tanh(scale * x / softcap), or scale * x."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Sizes of the tiles in which logits exist. The results do not depend on them, but for rounding."""

    tokens: int
    vocabulary: int
    kept_bytes: int
    """Logits of all tokens that take at most this are kept for the backward pass instead of computed again."""

    @property
    def tile_bytes(self) -> int:
        """Bytes of one float32 tile; at most four of them exist at the same time."""
        return 4 * self.tokens * self.vocabulary


CPU_TILING = Tiling(tokens=1024, vocabulary=2048, kept_bytes=64 << 20)
"""Tiles of 8 MiB, near a core's cache. Keeping logits saves a seventh of the head's time, no more."""
GPU_TILING = Tiling(tokens=2048, vocabulary=16384, kept_bytes=256 << 20)
"""Not measured on a GPU."""


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    logit_map: LogitMap | None = None,
    product_dtype: torch.dtype | None = None,
    tiling: Tiling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label, and the entropy of the distribution that it comes from.

    With z = map(hidden @ weight.T + bias) / temperature and p = softmax(z):

        logprob = z_label - logsumexp(z)         d logprob / d z_j = [j = label] - p_j
        entropy = logsumexp(z) - sum_j p_j z_j   d entropy / d z_j = -p_j (log p_j + entropy)

    Both have gradients, exact ones, in `hidden`, `weight` and `bias`; what needs none costs nothing, and neither does
    the entropy's where the loss does not use it. Not twice differentiable.

    Args:
        hidden: (N, H) of the tokens before the labels.
        weight: (V, H).
        labels: (N,) int64; one outside the vocabulary gives NaN.
        bias: (V,).
        temperature: above 0.
        product_dtype: type in which matrices are multiplied; sums are float32 all the same. None: hidden's.
        tiling: None: the device's.

    Returns:
        Log-probabilities and entropies in nats, (N,) each; float64 if the products are, else float32.
    """
    if tiling is None:
        tiling = GPU_TILING if hidden.is_cuda else CPU_TILING
    logit_map = logit_map or LogitMap()
    head = _Head(
        temperature=temperature,
        scale=logit_map.scale,
        softcap=logit_map.softcap,
        product_dtype=product_dtype or hidden.dtype,
        tiling=tiling,
    )
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    logprobs, entropies = _TokenLogprobs.apply(hidden, weight, bias, labels, head, needs_gradient)
    return logprobs, entropies


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """How logits are made of hidden states, tile by tile."""

    temperature: float
    scale: float
    softcap: float | None
    product_dtype: torch.dtype
    tiling: Tiling

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.float64 if self.product_dtype == torch.float64 else torch.float32

    def keeps(self, tokens: int, vocabulary: int) -> bool:
        """Whether logits of all tokens are small enough to be kept."""
        return tokens * vocabulary * self.sum_dtype.itemsize <= self.tiling.kept_bytes

    def vocabulary_tiles(self, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, weight.shape[0], self.tiling.vocabulary):
            words = slice(start, min(start + self.tiling.vocabulary, weight.shape[0]))
            yield words, weight[words].to(self.product_dtype)

    def token_tiles(self, tokens: int) -> Iterator[slice]:
        for start in range(0, tokens, self.tiling.tokens):
            yield slice(start, min(start + self.tiling.tokens, tokens))

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b, in the type of sums."""
        if a.dtype == self.sum_dtype:
            return a @ b
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=self.sum_dtype)
        return (a @ b).to(self.sum_dtype)  # no CPU kernel writes float32; it sums in float32 and rounds once

    def products(
        self, inputs: torch.Tensor, weight_tile: torch.Tensor, bias: torch.Tensor | None, words: slice
    ) -> torch.Tensor:
        """One tile of what the output head gives, before the model's map."""
        raw = self.product(inputs, weight_tile.T)
        return raw if bias is None else raw.add_(bias[words])

    def add_product_(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """total += a @ b"""
        if a.dtype == total.dtype:
            total.addmm_(a, b)
        else:
            total.add_(self.product(a, b))

    def map_(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Products to logits over temperature, in place; and tanh, where there is a soft-cap."""
        if self.softcap is None:
            factor = self.scale / self.temperature
            return (raw if factor == 1.0 else raw.mul_(factor)), None
        tanh = raw.mul_(self.scale / self.softcap).tanh_()
        return tanh * (self.softcap / self.temperature), tanh


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        head: _Head,
        needs_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)  # an entropy that the loss does not use has a gradient of None, not of 0
        ctx.head = head
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        sums = _OnlineSums(tokens, head.sum_dtype, hidden.device)
        kept = None
        if needs_gradient and head.keeps(tokens, vocabulary):
            kept = torch.empty(tokens, vocabulary, dtype=head.sum_dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            inputs = hidden.to(head.product_dtype)
            for words, weight_tile in head.vocabulary_tiles(weight):
                for part in head.token_tiles(tokens):
                    raw = head.products(inputs[part], weight_tile, bias, words)
                    if kept is not None:
                        kept[part, words] = raw
                    sums.add_(part, head.map_(raw)[0], labels[part] - words.start)
        logsumexp, entropies = sums.results()
        ctx.save_for_backward(hidden, weight, bias, labels, logsumexp, entropies, kept)
        return sums.chosen - logsumexp, entropies.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropies: torch.Tensor | None) -> Any:
        hidden, weight, bias, labels, logsumexp, entropies, kept = ctx.saved_tensors
        head: _Head = ctx.head
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(logsumexp)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=head.sum_dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=head.sum_dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            inputs = hidden.to(head.product_dtype)
            for words, weight_tile in head.vocabulary_tiles(weight):
                weight_sum = None
                if grad_weight is not None:
                    weight_sum = grad_weight[words].to(head.sum_dtype)  # itself, if it has that type
                for part in head.token_tiles(hidden.shape[0]):
                    if kept is not None:
                        raw = kept[part, words].clone()
                    else:
                        raw = head.products(inputs[part], weight_tile, bias, words)
                    grad_raw = _grad_of_products(
                        head,
                        raw,
                        labels[part] - words.start,
                        logsumexp[part],
                        entropies[part],
                        grad_logprobs[part],
                        None if grad_entropies is None else grad_entropies[part],
                    )
                    if grad_bias is not None:
                        grad_bias[words] += grad_raw.sum(0)
                    grad_raw = grad_raw.to(head.product_dtype)
                    if grad_hidden is not None:
                        head.add_product_(grad_hidden[part], grad_raw, weight_tile)
                    if weight_sum is not None:
                        head.add_product_(weight_sum, grad_raw.T, inputs[part])
                if grad_weight is not None and weight_sum is not None and weight_sum.dtype != grad_weight.dtype:
                    grad_weight[words] = weight_sum
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _OnlineSums:
    """Of each token, over the tiles of the vocabulary seen so far: the greatest logit m, the sums of exp(z - m) and of
    (z - m) exp(z - m), and the label's logit. Subtracting m first keeps the entropy's digits."""

    def __init__(self, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        # The least finite number and not -inf, of which the first rescaling would make NaN.
        self._peak = torch.full((tokens,), torch.finfo(dtype).min, dtype=dtype, device=device)
        self._mass = torch.zeros_like(self._peak)
        self._moment = torch.zeros_like(self._peak)
        self.chosen = torch.full_like(self._peak, torch.nan)

    def add_(self, part: slice, logits: torch.Tensor, local_labels: torch.Tensor) -> None:
        """Add a tile; its logits are overwritten."""
        label, inside = _inside(local_labels, logits.shape[1])
        picked = logits.gather(1, label).squeeze(1)
        self.chosen[part] = torch.where(inside, picked, self.chosen[part])
        peak = torch.maximum(self._peak[part], logits.amax(1))
        drop = self._peak[part] - peak
        shrink = drop.exp()
        logits -= peak[:, None]
        mass = logits.exp()
        self._moment[part] = (self._moment[part] + drop * self._mass[part]) * shrink + torch.linalg.vecdot(mass, logits)
        self._mass[part] = self._mass[part] * shrink + mass.sum(1)
        self._peak[part] = peak

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logsumexp and entropy of each token."""
        log_mass = self._mass.log()
        return self._peak + log_mass, log_mass - self._moment / self._mass


def _grad_of_products(
    head: _Head,
    raw: torch.Tensor,
    local_labels: torch.Tensor,
    logsumexp: torch.Tensor,
    entropies: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropies: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient in one tile's products; `raw` is overwritten."""
    logits, tanh = head.map_(raw)
    logp = logits.sub_(logsumexp[:, None])
    factor = head.scale / head.temperature
    grad = logp.exp()
    if grad_entropies is None:
        grad *= -factor * grad_logprobs[:, None]
    else:
        inner = logp.add_(entropies[:, None]).mul_(grad_entropies[:, None]).add_(grad_logprobs[:, None])
        grad *= inner.mul_(-factor)
    label, inside = _inside(local_labels, grad.shape[1])
    grad.scatter_add_(1, label, torch.where(inside, factor * grad_logprobs, 0)[:, None])
    if tanh is not None:
        grad *= tanh.square_().neg_().add_(1)
    return grad


def _inside(local_labels: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as (n, 1) indices into a tile of `width` words, and whether they are in it."""
    inside = (local_labels >= 0) & (local_labels < width)
    return local_labels.clamp(0, width - 1)[:, None], inside
