"""Weights for the mismatch between the generator, which sampled, and the learner, which learns."""

from __future__ import annotations

import math

import torch

from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import LossSettings


def importance_weights(
    old_logprobs: torch.Tensor, generator_logprobs: torch.Tensor, segments: Segments, settings: LossSettings
) -> torch.Tensor | None:
    """Weight of each token's policy term, (N,), detached; None where nothing is corrected.

    With d = old - generator (0 where the generator's is NaN), and bounds that are inclusive:

        token_truncate     clip(exp d, floor, cap)                    TIS, fengyao.notion.site/off-policy-rl
        token_mask         exp d, or 0 outside the bounds             IcePop, arXiv 2510.18855
        sequence_truncate  clip(exp sum d, floor, cap)
        sequence_mask      exp sum d, or 0 outside the bounds
        geometric_mask     0 where exp(mean d) lies outside the geometric bounds, else token_truncate (1 without bounds)

    Masked tokens and completions stay in what the loss is divided by.
    """
    correction = settings.importance_correction
    if correction == "none":
        return None
    difference = (old_logprobs - generator_logprobs).detach()
    difference = torch.where(torch.isnan(difference), torch.zeros_like(difference), difference)
    floor = -math.inf if settings.importance_floor is None else settings.importance_floor
    cap = math.inf if settings.importance_cap is None else settings.importance_cap
    if correction == "token_truncate":
        return difference.exp().clamp(floor, cap)
    if correction == "token_mask":
        return _masked(difference.exp(), floor, cap)
    if correction == "sequence_truncate":
        return segments.spread(segments.sum(difference).exp().clamp(floor, cap))
    if correction == "sequence_mask":
        return segments.spread(_masked(segments.sum(difference).exp(), floor, cap))
    mean = segments.mean(difference).exp()
    inside = (mean >= settings.geometric_floor) & (mean <= settings.geometric_cap)
    bounded = settings.importance_cap is not None or settings.importance_floor is not None
    weights = difference.exp().clamp(floor, cap) if bounded else torch.ones_like(difference)
    return torch.where(segments.spread(inside), weights, torch.zeros_like(weights))


def off_policy_keep(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    segments: Segments,
    threshold: float,
) -> torch.Tensor:
    """Whether each token's completion stays in the policy term, (N,) bool; DeepSeek-V3.2, arXiv 2512.02556 eq. 9.

    It leaves where its advantage is negative and the mean of behaviour - policy over its tokens exceeds `threshold`.

    Args:
        behaviour_logprobs: (N,) of what sampled; where NaN, the difference counts as 0.
    """
    difference = (behaviour_logprobs - logprobs).detach()
    difference = torch.where(torch.isnan(difference), torch.zeros_like(difference), difference)
    near = segments.spread(segments.mean(difference) <= threshold)
    return near | (advantages >= 0)


def _masked(weights: torch.Tensor, floor: float, cap: float) -> torch.Tensor:
    return torch.where((weights >= floor) & (weights <= cap), weights, torch.zeros_like(weights))
