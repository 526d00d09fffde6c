"""CISPO: the ratio is a weight, capped and without gradient, so that no token is clipped away."""

from __future__ import annotations

import torch


def cispo(ratio: torch.Tensor, logprobs: torch.Tensor, advantages: torch.Tensor, *, cap: float) -> torch.Tensor:
    """sg[min(r, cap)] A log-probability of each token, (N,).

    MiniMax-M1, arXiv 2506.13585 eq. 4; ScaleRL, 2510.13786. `cap` is an absolute ratio (ScaleRL: 4 to 8), not an
    epsilon above 1. The value depends on the log-probability and says nothing; the gradient is min(r, cap) A.
    """
    return ratio.detach().clamp(max=cap) * advantages * logprobs
