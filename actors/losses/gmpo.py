"""GMPO: the geometric mean of token ratios, each clipped in log space before."""

from __future__ import annotations

import torch

from funicular.actors.losses.segments import Segments


def gmpo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    segments: Segments,
    *,
    epsilon_low: float,
    epsilon_high: float,
) -> torch.Tensor:
    """exp(mean of clipped log-ratios) A of the completion, at each of its tokens, (N,); arXiv 2507.20673.

    The clip is one-sided: at most epsilon_high where the advantage is positive, at least -epsilon_low elsewhere.
    """
    difference = logprobs - old_logprobs.detach()
    clipped = torch.where(advantages > 0, difference.clamp(max=epsilon_high), difference.clamp(min=-epsilon_low))
    return segments.spread(torch.exp(segments.mean(clipped))) * advantages
