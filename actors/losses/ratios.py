"""Importance ratios: new policy over old policy, of tokens or of completions."""

from __future__ import annotations

import torch

from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import RatioLevel


def importance_ratio(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, segments: Segments, level: RatioLevel
) -> torch.Tensor:
    """The ratio at each token, with gradient to `logprobs`.

    With d = logprobs - old_logprobs, and n the tokens of the completion:

        token           exp(d)                                          PPO, arXiv 1707.06347
        sequence        exp(sum d / n)                                  GSPO, 2507.18071 eq. 6
        sequence_token  sg[exp(sum d / n)] exp(logprobs - sg[logprobs]) GSPO-token, 2507.18071 eq. 14
        sequence_sum    exp(sum d)                                      RLOO, 2402.14740

    Args:
        logprobs: (N,) of the current policy.
        old_logprobs: (N,), detached here.

    Returns:
        (N,); the same number at all tokens of a completion for the sequence levels.
    """
    difference = logprobs - old_logprobs.detach()
    if level == "token":
        return torch.exp(difference)
    if level == "sequence_sum":
        return segments.spread(torch.exp(segments.sum(difference)))
    if level == "sequence":
        return segments.spread(torch.exp(segments.mean(difference)))
    mean = segments.spread(torch.exp(segments.mean(difference.detach())))
    return mean * torch.exp(logprobs - logprobs.detach())
