"""Sequence parallelism: the ranks of a group share the tokens of each pass (DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank holds a contiguous shard of the pass: embeddings, layers and output head run on its tokens only. Attention
needs whole rows, so each layer exchanges heads for tokens, attends over all tokens with its part of the heads, and
exchanges back. Log-probabilities are gathered at the end: every rank of a group computes the loss of the same rows.

DeepSpeed is told nothing of this. It averages gradients over all ranks, and each rank's gradient is the part that goes
through its own tokens; they add up to the whole, as those of different rows do. So the factor is the number of all
ranks, at every ZeRO stage. Told of it, DeepSpeed 0.19.8 needs another one at stage 3 than below (docs/adr/0014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.autograd.function import once_differentiable

_POSITION_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Frequencies depend on the largest position of the forward pass, and a shard does not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceGroup:
    """The ranks that share the tokens of a pass, as one of them sees them."""

    process_group: Any
    size: int
    rank: int
    """In the group."""

    @property
    def leads(self) -> bool:
        """This rank's numbers stand for the group's, where all have the same and they are summed over ranks."""
        return self.rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one rank of a group has of a pass."""

    group: SequenceGroup
    start: int
    end: int
    """Its shard of the tokens."""
    padding: int
    """Tokens that the pass is given at its end, each a row, so that all shards have the same length."""
    order: torch.Tensor
    """(N,) which of the pass's scored tokens the ranks score: the first rank's, then the second's, and so on."""
    counts: tuple[int, ...]
    """Tokens that each rank of the group scores."""

    @property
    def own(self) -> torch.Tensor:
        """(own count,) which of the pass's scored tokens this rank scores: those whose predictors are in its shard."""
        first = sum(self.counts[: self.group.rank])
        return self.order[first : first + self.counts[self.group.rank]]


def join_sequence_group(rank: int, world_size: int, size: int, *, timeout_s: float) -> SequenceGroup | None:
    """Make the groups, of `size` neighbouring ranks each, and return this rank's; None for size 1. A collective.

    Args:
        timeout_s: seconds after which an exchange fails because a peer does not come.

    Raises:
        ValueError: size does not divide the number of ranks.
    """
    if size == 1:
        return None
    if world_size % size:
        raise ValueError(f"learner.sequence_parallel: {size} does not divide learner.ranks={world_size}")
    own = None
    for first in range(0, world_size, size):  # every rank makes every group
        group = distributed.new_group(range(first, first + size), timeout=timedelta(seconds=timeout_s))
        if first <= rank < first + size:
            own = group
    return SequenceGroup(process_group=own, size=size, rank=rank % size)


def share_of(tokens: int, predictors: torch.Tensor, group: SequenceGroup) -> Share:
    """This rank's part of a pass.

    Args:
        tokens: of the whole pass.
        predictors: (N,) positions in it of the tokens before those to score.
    """
    length = math.ceil(tokens / group.size)
    ranks = predictors // length
    return Share(
        group=group,
        start=group.rank * length,
        end=(group.rank + 1) * length,
        padding=length * group.size - tokens,
        order=torch.argsort(ranks, stable=True),
        counts=tuple(torch.bincount(ranks, minlength=group.size).tolist()),
    )


def pad_and_cut(tensor: torch.Tensor, share: Share) -> torch.Tensor:
    """(1, T) token ids or positions to this rank's (1, length)."""
    return torch.nn.functional.pad(tensor, (0, share.padding))[:, share.start : share.end]


def exchange_around(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function of transformers that sees whole rows and a part of the heads.

    Without the keyword argument `sequence_group`, or with None, it is the function itself.
    """

    def exchanging(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *arguments: Any,
        sequence_group: SequenceGroup | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        if sequence_group is None:
            return attention(module, query, key, value, attention_mask, *arguments, **options)
        query, key, value = heads_for_tokens(query, key, value, sequence_group)
        output, _ = attention(module, query, key, value, attention_mask, *arguments, **options)
        return _tokens_for_heads(output, sequence_group), None

    return exchanging


def heads_for_tokens(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: SequenceGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(1, heads, T / size, d) of this rank's tokens to (1, heads / size, T, d) of all tokens, in one exchange.

    Key heads that are too few to be dealt out are repeated first, as often as needed.

    Raises:
        ValueError: size does not divide the number of heads.
    """
    size, heads, key_heads = group.size, query.shape[1], key.shape[1]
    refuse_heads(heads, size)
    copies = size // math.gcd(size, key_heads)  # divides heads / key heads, because size divides heads
    if copies > 1:
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    tensors = (query, key, value)
    sent = torch.cat([tensor.reshape(size, -1) for tensor in tensors], 1)  # row r: the heads of rank r
    widths = [tensor.numel() // size for tensor in tensors]
    received = _Exchange.apply(sent, group.process_group).split(widths, 1)
    query, key, value = (
        part.reshape(size, tensor.shape[1] // size, *tensor.shape[2:]).transpose(0, 1).flatten(1, 2)[None]
        for part, tensor in zip(received, tensors, strict=True)
    )
    return query, key, value


def _tokens_for_heads(output: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """(1, T, heads / size, d) back to (1, T / size, heads, d)."""
    size = group.size
    received = _Exchange.apply(output.reshape(size, -1), group.process_group)
    return received.reshape(size, -1, *output.shape[2:]).transpose(0, 1).flatten(1, 2)[None]


def gather_tokens(own: Sequence[torch.Tensor], share: Share) -> tuple[torch.Tensor, ...]:
    """Each (own count,) tensor of what this rank scores to (N,) of what the group does, in order.

    Backwards each rank takes the gradient of its own tokens and adds nothing up: all ranks must compute the same loss,
    and each token counts once when gradients are summed over ranks. What the loss does not use has no gradient.

    Args:
        own: tensors of one type.
    """
    gathered: tuple[torch.Tensor, ...] = _Gather.apply(share, *own)
    return gathered


def refuse_heads(heads: int, size: int) -> None:
    """The exchange deals out whole heads.

    Raises:
        ValueError: size does not divide heads.
    """
    if heads % size:
        fitting = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"learner.sequence_parallel: {size} does not divide the model's {heads} attention heads; "
            f"expected one of {', '.join(fitting)}"
        )


def refuse_model(causal_lm: Any, *, packed: bool, size: int) -> None:
    """What cannot be cut into shards of tokens.

    Raises:
        ValueError: the model does not run over packed rows, has a number of heads that does not fit, or positions that
            depend on the whole pass.
    """
    name = type(causal_lm).__name__
    if not packed:
        raise ValueError(
            f"learner.sequence_parallel: {name} does not run over packed rows (the log says why), and only those are "
            "shared between ranks; set learner.sequence_parallel=1"
        )
    refuse_heads(causal_lm.config.get_text_config().num_attention_heads, size)
    for module in causal_lm.modules():
        kinds = getattr(module, "rope_type", None) or ()
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else kinds
        if found := [kind for kind in kinds if kind in _POSITION_DEPENDENT_ROPE]:
            raise ValueError(
                f"learner.sequence_parallel: the rotary embedding of {name} is {found[0]!r}, whose frequencies depend "
                "on the longest row of a pass, which no rank sees; set learner.sequence_parallel=1"
            )


class _Exchange(torch.autograd.Function):
    """(size, X): row r goes to rank r. Its own transpose, so the gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, sent: torch.Tensor, process_group: Any) -> torch.Tensor:
        ctx.process_group = process_group
        return _exchange(sent, process_group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _exchange(grad, ctx.process_group), None


def _exchange(sent: torch.Tensor, process_group: Any) -> torch.Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=process_group)
    return received


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Share, *own: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        group, counts = share.group, share.counts
        ctx.own = share.own
        sent = own[0].new_zeros(len(own), max(counts))
        sent[:, : counts[group.rank]] = torch.stack(own)
        parts = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(parts, sent, group=group.process_group)
        whole = torch.empty(len(own), sum(counts), dtype=sent.dtype, device=sent.device)
        whole[:, share.order] = torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], 1)
        gathered = tuple(row.clone() for row in whole)
        fixed = zip(gathered, ctx.needs_input_grad[1:], strict=True)
        ctx.mark_non_differentiable(*(row for row, needs_gradient in fixed if not needs_gradient))
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        return None, *(None if grad is None else grad[ctx.own] for grad in grads)
