"""Which tokens are those of highest entropy: arXiv 2506.01939 trains on them alone."""

from __future__ import annotations

import torch


def entropy_threshold_of(entropies: torch.Tensor, quantile: float) -> float:
    """The entropy from which a token belongs to the given upper part of all tokens; inclusive.

    Args:
        entropies: (N,) of all trained tokens of an optimizer batch, nats.
        quantile: part that is kept, 0 to 1: the threshold is the (1 - quantile) quantile, interpolated linearly.

    Returns:
        -inf where there are no tokens.
    """
    if not entropies.numel():
        return float("-inf")
    ordered = entropies.detach().double().sort().values  # torch.quantile refuses more than 2^24 elements
    position = (1 - quantile) * (ordered.numel() - 1)
    if abs(position - round(position)) < 1e-9:  # 1 - 0.7 is above 0.3, and would leave out the token that it means
        position = round(position)
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    return float(torch.lerp(ordered[below], ordered[above], position - below))
