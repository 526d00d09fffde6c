"""Estimates of KL(policy || reference) from the log-probabilities of sampled tokens."""

from __future__ import annotations

import torch

from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import KlEstimator


def kl_terms(
    logprobs: torch.Tensor, reference_logprobs: torch.Tensor, *, ratio: torch.Tensor, kl_estimator: KlEstimator
) -> torch.Tensor:
    """The estimate at each token, (N,). With d = reference - policy (Schulman, "Approximating KL divergence"):

        k1           -d              as a loss its gradient is 0 in expectation: for rewards only
        k2           d^2 / 2         expected gradient: that of KL(policy || reference), on policy
        k3           e^d - d - 1     GRPO, arXiv 2402.03300 eq. 4; gradient of KL(reference || policy)
        k3_unbiased  r k3            DeepSeek-V3.2, 2512.02556 eq. 7; r with gradient: that of KL(policy || reference)

    Args:
        reference_logprobs: (N,), detached here.
        ratio: (N,) before any clamp; read by k3_unbiased only.
    """
    difference = reference_logprobs.detach() - logprobs
    if kl_estimator == "k1":
        return -difference
    if kl_estimator == "k2":
        return difference.square() / 2
    k3 = torch.exp(difference) - difference - 1
    return k3 * ratio if kl_estimator == "k3_unbiased" else k3


def kl_to_go(k1: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Sum of `k1` from each token to the end of its completion, (N,) float64: what REINFORCE++ takes from returns."""
    ahead = k1.double().flip(0).cumsum(0).flip(0)
    # what lies ahead of the completion's end belongs to the completions after it
    starts_of_next = segments.lengths.cumsum(0)
    beyond = torch.cat([ahead, ahead.new_zeros(1)])[starts_of_next]
    return ahead - segments.spread(beyond)
