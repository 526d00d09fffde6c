"""Divergences of student and teacher from hidden states, without logits of all tokens and words at the same time.

The forward pass takes some tokens at a time with all their words; the backward pass walks the vocabulary outside and
the tokens inside and computes each tile again, as `token_logprobs` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from funicular.actors.logit_tiles import HeadProducts, LogitMap, Tiling
from funicular.actors.losses.divergence import generalised_jsd, jsd_gradient

_TILES = 2
"""Elements of the forward pass's tensors, in tiles; about eight of them exist at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStates:
    """What the teacher's distributions of N tokens are computed from; nothing in here gets a gradient."""

    hidden: torch.Tensor
    """(N, H') of the tokens before them; its width is the teacher's own."""
    weight: torch.Tensor
    """(V', H')"""
    bias: torch.Tensor | None
    """(V',)"""
    logit_map: LogitMap


def token_divergences(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher: TeacherStates,
    *,
    beta: float,
    temperature: float,
    bias: torch.Tensor | None = None,
    logit_map: LogitMap | None = None,
    product_dtype: torch.dtype | None = None,
    tiling: Tiling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The generalised Jensen-Shannon divergence of each next-token distribution, and KL(student || teacher).

    `generalised_jsd` of softmax(logits / temperature) of both. Where one output has more rows than the other (padding
    of the vocabulary), both distributions are taken over the words that they share.

    Args:
        hidden: (N, H) of the tokens before, the student's.
        weight: (V, H).
        beta: 0: KL(teacher || student), 1: KL(student || teacher).
        temperature: above 0.
        bias: (V,).
        product_dtype: type in which the student's matrices are multiplied; sums are float32 all the same. None: that
            of hidden. The teacher's are multiplied in its own type.
        tiling: None: the device's.

    Returns:
        Nats, (N,) each; float64 if the products are, else float32. The first has exact gradients in `hidden`, `weight`
        and `bias`, the second none.
    """
    words = min(weight.shape[0], teacher.weight.shape[0])
    head = HeadProducts.of(hidden, logit_map, temperature, product_dtype, tiling)
    theirs = HeadProducts.of(teacher.hidden, teacher.logit_map, temperature, None, tiling)
    saved = (teacher.hidden.detach(), teacher.weight.detach(), None if teacher.bias is None else teacher.bias.detach())
    jsd, kl = _TokenDivergences.apply(hidden, weight, bias, *saved, _Pair(head, theirs, beta, words))
    return jsd, kl


@dataclass(frozen=True, slots=True)
class _Pair:
    """How both sides' logits are made."""

    student: HeadProducts
    teacher: HeadProducts
    beta: float
    words: int
    """Rows of both outputs that are used."""

    @property
    def rows(self) -> int:
        """Tokens of the forward pass's tiles."""
        tiling = self.student.tiling
        return max(1, _TILES * tiling.tokens * tiling.vocabulary // self.words)


class _TokenDivergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        teacher_hidden: torch.Tensor,
        teacher_weight: torch.Tensor,
        teacher_bias: torch.Tensor | None,
        pair: _Pair,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.pair = pair
        tokens, dtype = hidden.shape[0], pair.student.sum_dtype
        # jsd, kl, KL(student || mixture), and both sides' logsumexp
        jsd, kl, to_mixture, mine, theirs = (torch.empty(tokens, dtype=dtype, device=hidden.device) for _ in range(5))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, tokens, pair.rows):
                part = slice(start, start + pair.rows)
                student = _all_logits(pair.student, hidden[part], weight, bias, pair.words).to(dtype)
                teacher = _all_logits(pair.teacher, teacher_hidden[part], teacher_weight, teacher_bias, pair.words)
                teacher = teacher.to(dtype)
                mine[part], theirs[part] = student.logsumexp(1), teacher.logsumexp(1)
                student -= mine[part, None]
                teacher -= theirs[part, None]
                found = generalised_jsd(student, teacher, pair.beta)
                jsd[part], kl[part], to_mixture[part] = found.jsd, found.kl, found.student_to_mixture
        ctx.save_for_backward(
            hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, mine, theirs, to_mixture
        )
        ctx.mark_non_differentiable(kl)
        return jsd, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_jsd: torch.Tensor, _: torch.Tensor) -> Any:
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, mine, theirs, to_mixture = ctx.saved_tensors
        pair: _Pair = ctx.pair
        head = pair.student
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=head.sum_dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=head.sum_dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            inputs, their_inputs = hidden.to(head.product_dtype), teacher_hidden.to(pair.teacher.product_dtype)
            for words, weight_tile in head.vocabulary_tiles(weight[: pair.words]):
                their_tile = teacher_weight[words].to(pair.teacher.product_dtype)
                weight_sum = None if grad_weight is None else grad_weight[words].to(head.sum_dtype)
                for part in head.token_tiles(hidden.shape[0]):
                    logits, tanh = head.map_(head.products(inputs[part], weight_tile, bias, words))
                    raw = pair.teacher.products(their_inputs[part], their_tile, teacher_bias, words)
                    teacher = pair.teacher.map_(raw)[0].to(head.sum_dtype).sub_(theirs[part, None])
                    student = logits.sub_(mine[part, None])
                    grad = jsd_gradient(student, teacher, to_mixture[part], pair.beta)
                    grad *= (head.factor * grad_jsd[part])[:, None]
                    if tanh is not None:
                        grad *= tanh.square_().neg_().add_(1)
                    if grad_bias is not None:
                        grad_bias[words] += grad.sum(0)
                    grad = grad.to(head.product_dtype)
                    if grad_hidden is not None:
                        grad_hidden[part] += head.product(grad, weight_tile)  # see HeadProducts.product
                    if weight_sum is not None:
                        head.add_product_(weight_sum, grad.T, inputs[part])
                if grad_weight is not None and weight_sum is not None and weight_sum.dtype != grad_weight.dtype:
                    grad_weight[words] = weight_sum
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _all_logits(
    head: HeadProducts, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, words: int
) -> torch.Tensor:
    """(n, words) logits over temperature of a few tokens; the weight is cast tile by tile."""
    inputs = hidden.to(head.product_dtype)
    raw = torch.empty(hidden.shape[0], words, dtype=head.sum_dtype, device=hidden.device)
    for part, weight_tile in head.vocabulary_tiles(weight[:words]):
        raw[:, part] = head.products(inputs, weight_tile, bias, part)
    return head.map_(raw)[0]
