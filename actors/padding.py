"""How much padding a batched call of attention may compute, so that spans of about the same length share one."""

from __future__ import annotations

_WASTE = 0.25
"""Padded pairs of tokens, of those that count."""
_FREE_WASTE = 4096
"""Padded pairs that cost less than a call of their own."""


def may_join(pairs: int, *, batch_pairs: int, padded_before: int, padded_after: int) -> bool:
    """Whether something may join a batch: neither the whole batch nor what it adds itself is mostly padding.

    Its own padding is judged besides, or one short span would be computed as a long one beside four long ones.

    Args:
        pairs: of query and key tokens that count in what is to join.
        batch_pairs: the same of what is in the batch.
        padded_before, padded_after: pairs that the batch's call computes without it and with it.
    """
    added = padded_after - padded_before - pairs
    together = padded_after - batch_pairs - pairs
    return added <= _WASTE * pairs + _FREE_WASTE and together <= _WASTE * (batch_pairs + pairs) + _FREE_WASTE
