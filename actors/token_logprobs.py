"""Log-probabilities and entropies from hidden states, without logits of all tokens and words at the same time.

The output head's logits exist one tile of tokens x vocabulary at a time. The forward pass keeps four numbers a token
(online logsumexp, as in FlashAttention 2205.14135 and Cut Your Losses 2411.09009), the backward pass computes each tile
again. Both walk the vocabulary outside and the tokens inside, so that a tile of the weight is cast once, and the
weight's gradient is summed in float32 without a float32 copy of the whole weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from funicular.actors.logit_tiles import CPU_TILING, GPU_TILING, HeadProducts, LogitMap, Tiling

__all__ = ["CPU_TILING", "GPU_TILING", "LogitMap", "Tiling", "token_logprobs"]


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
    head = HeadProducts.of(hidden, logit_map, temperature, product_dtype, tiling)
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    logprobs, entropies = _TokenLogprobs.apply(hidden, weight, bias, labels, head, needs_gradient)
    return logprobs, entropies


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        head: HeadProducts,
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
                    out = None if kept is None else kept[part, words]
                    raw = head.products(inputs[part], weight_tile, bias, words, out=out)
                    if head.has_kernels(raw):
                        sums.add_on_gpu_(part, raw, head.factor, labels[part] - words.start)
                        continue
                    logits, _ = head.map_(raw) if kept is None else head.logits(raw)
                    sums.add_(part, logits, labels[part] - words.start)
        logsumexp, entropies = sums.results()
        ctx.save_for_backward(hidden, weight, bias, labels, logsumexp, entropies, kept)
        return sums.chosen - logsumexp, entropies.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropies: torch.Tensor | None) -> Any:
        hidden, weight, bias, labels, logsumexp, entropies, kept = ctx.saved_tensors
        head: HeadProducts = ctx.head
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
                    raw = head.products(inputs[part], weight_tile, bias, words) if kept is None else kept[part, words]
                    of_tokens = (
                        labels[part] - words.start,
                        logsumexp[part],
                        entropies[part],
                        grad_logprobs[part],
                        None if grad_entropies is None else grad_entropies[part],
                    )
                    if head.has_kernels(raw):
                        dtype = head.product_dtype if grad_bias is None else head.sum_dtype
                        grad_raw = _grad_of_products_on_gpu(head, raw, *of_tokens, dtype)
                    else:
                        logits, tanh = head.map_(raw) if kept is None else head.logits(raw)
                        grad_raw = _grad_of_products(head, logits, tanh, *of_tokens)
                    if grad_bias is not None:
                        grad_bias[words] += grad_raw.sum(0)
                    grad_raw = grad_raw.to(head.product_dtype)
                    if grad_hidden is not None:
                        grad_hidden[part] += head.product(grad_raw, weight_tile)  # see HeadProducts.product
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
        """Add a tile."""
        label, inside = _inside(local_labels, logits.shape[1])
        picked = logits.gather(1, label).squeeze(1)
        self.chosen[part] = torch.where(inside, picked, self.chosen[part])
        peak = torch.maximum(self._peak[part], logits.amax(1))
        drop = self._peak[part] - peak
        shrink = drop.exp()
        shifted = logits - peak[:, None]
        mass = shifted.exp()
        self._moment[part] = (self._moment[part] + drop * self._mass[part]) * shrink + torch.linalg.vecdot(
            mass, shifted
        )
        self._mass[part] = self._mass[part] * shrink + mass.sum(1)
        self._peak[part] = peak

    def add_on_gpu_(self, part: slice, raw: torch.Tensor, factor: float, local_labels: torch.Tensor) -> None:
        """Add a tile of products; its logits are `factor` times them."""
        from funicular.actors.logit_kernels import add_tile

        sums = (self._peak[part], self._mass[part], self._moment[part], self.chosen[part])
        add_tile(raw, factor, local_labels, *sums)

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logsumexp and entropy of each token."""
        log_mass = self._mass.log()
        return self._peak + log_mass, log_mass - self._moment / self._mass


def _grad_of_products(
    head: HeadProducts,
    logits: torch.Tensor,
    tanh: torch.Tensor | None,
    local_labels: torch.Tensor,
    logsumexp: torch.Tensor,
    entropies: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropies: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient in one tile's products; `tanh` is overwritten."""
    logp = logits - logsumexp[:, None]
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


def _grad_of_products_on_gpu(
    head: HeadProducts,
    raw: torch.Tensor,
    local_labels: torch.Tensor,
    logsumexp: torch.Tensor,
    entropies: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropies: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same from products, in `dtype`."""
    from funicular.actors.logit_kernels import grad_of_tile

    return grad_of_tile(raw, head.factor, local_labels, logsumexp, entropies, grad_logprobs, grad_entropies, dtype)


def _inside(local_labels: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as (n, 1) indices into a tile of `width` words, and whether they are in it."""
    inside = (local_labels >= 0) & (local_labels < width)
    return local_labels.clamp(0, width - 1)[:, None], inside
