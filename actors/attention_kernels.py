"""Attention of queries over a part of what they see: with the logsumexp, and with the gradient that this part has.

A softmax over several parts is joined from the parts' own by their logsumexps. Backwards, a kernel that is given the
joint output and logsumexp in place of its own yields this part's gradient exactly: it computes each weight as
exp(score - logsumexp), and what it takes from the output is a sum over all parts. torch's ring attention does the same.

Shapes: queries (B, heads, L, d); keys and values (B, key heads, S, d), key heads divide heads; logsumexp (B, heads, L);
a mask of keys (B, 1, 1, S) is added to the scores, which FlashAttention on GPUs cannot do.
"""

from __future__ import annotations

import torch

_aten = torch.ops.aten


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and logsumexp. Causal: query i sees keys 0 to i."""
    tensors = (query, key, value)
    if query.device.type == "cpu":
        out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(
            *tensors, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, logsumexp
    if mask is None and _has_flash(query):
        out, logsumexp, *_ = _aten._scaled_dot_product_flash_attention(*tensors, 0.0, causal, scale=scale)
        return out, logsumexp
    return plain_attend(*tensors, mask, causal=causal, scale=scale)


def gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This part's gradients of queries, keys and values, from the joint output, its gradient, and the logsumexp."""
    tensors = (grad, query, key, value, out, logsumexp)
    if query.device.type == "cpu":
        found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, 0.0, causal, attn_mask=mask, scale=scale
        )
    elif mask is None and _has_flash(query):
        sizes = (query.shape[2], key.shape[2])
        unused = torch.empty(2, dtype=torch.uint64, device=query.device)  # without dropout no random state is read
        found = _aten._scaled_dot_product_flash_attention_backward(
            *tensors, None, None, *sizes, 0.0, causal, unused, unused, scale=scale
        )
    else:
        found = plain_gradients(*tensors, mask, causal=causal, scale=scale)
    return found[0], found[1], found[2]


def _has_flash(query: torch.Tensor) -> bool:
    """Whether torch has FlashAttention for it. Not run on a GPU yet."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[3] % 8 == 0


def plain_attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend` by matrix products: all scores exist at once."""
    scores = _scores(query, key, mask, causal=causal, scale=scale)
    logsumexp = scores.logsumexp(-1)
    weights = (scores - logsumexp[..., None]).exp().to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2), logsumexp.flatten(1, 2)


def plain_gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gradients` by matrix products."""
    scores = _scores(query, key, mask, causal=causal, scale=scale)
    weights = (scores - _grouped(logsumexp, key)[..., None]).exp()
    grad_grouped = _grouped(grad, key)
    of_weights = (grad_grouped @ value[:, :, None].transpose(3, 4)).to(weights.dtype)
    from_output = (grad * out).sum(-1, dtype=weights.dtype)
    of_scores = (weights * (of_weights - _grouped(from_output, key)[..., None]) * scale).to(query.dtype)
    grad_query = (of_scores @ key[:, :, None]).flatten(1, 2)
    grad_key = (of_scores.transpose(3, 4) @ _grouped(query, key)).sum(2)
    grad_value = (weights.to(value.dtype).transpose(3, 4) @ grad_grouped).sum(2)
    return grad_query, grad_key, grad_value


def _scores(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, *, causal: bool, scale: float
) -> torch.Tensor:
    """(B, key heads, heads per key head, L, S), in float32 at least."""
    scores = (_grouped(query, key) @ key[:, :, None].transpose(3, 4)) * scale
    scores = scores.to(torch.promote_types(query.dtype, torch.float32))
    if mask is not None:
        scores = scores + mask[:, :, None]
    if causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(unseen, -torch.inf)
    return scores


def _grouped(of_queries: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(B, heads, ...) to (B, key heads, heads per key head, ...)."""
    return of_queries.unflatten(1, (key.shape[1], -1))
