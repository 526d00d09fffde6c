"""VESPO: a gamma-shaped weight of the completion's whole ratio."""

from __future__ import annotations

import math

import torch

from funicular.actors.losses.segments import Segments

_LOG_RATIO_LIMIT = 20.0
_LOG_FLOOR = math.log(1e-8)


def vespo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    segments: Segments,
    *,
    k_positive: float,
    lambda_positive: float,
    k_negative: float,
    lambda_negative: float,
    importance_weights: torch.Tensor | None,
) -> torch.Tensor:
    """sg[phi] A log-probability of each token, (N,); arXiv 2602.10693.

    phi = e^lambda W^k e^(-lambda W), with W the product of the completion's ratios and importance weights, kept in
    [1e-8, e^20]; phi(1) = 1. k and lambda are the positive ones where the advantage is at least 0.

    Args:
        importance_weights: (N,) of tokens, folded into W, where 0 counts as 1e-8; None: 1.
    """
    with torch.no_grad():
        log_weight = segments.sum((logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
        if importance_weights is not None:
            log_weight = log_weight + segments.sum(importance_weights.log().clamp(min=_LOG_FLOOR))
        log_weight = segments.spread(log_weight.clamp(_LOG_FLOOR, _LOG_RATIO_LIMIT))
        positive = advantages >= 0
        # torch.where on two Python numbers would round them to float32
        k = torch.full_like(log_weight, k_negative).masked_fill(positive, k_positive)
        rate = torch.full_like(log_weight, lambda_negative).masked_fill(positive, lambda_positive)
        phi = torch.exp(rate + k * log_weight - rate * log_weight.exp())
    return phi * advantages * logprobs
