"""PPO's clipped objective, with a two-sided clip as an option."""

from __future__ import annotations

import torch


def ppo_clip(
    ratio: torch.Tensor, advantages: torch.Tensor, *, epsilon_low: float, epsilon_high: float, delta: float | None
) -> torch.Tensor:
    """min( min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A ) of each token.

    PPO, arXiv 1707.06347 eq. 7; GRPO, 2402.03300 eq. 3; delta: INTELLECT-2, 2505.07291, which is dual-clip PPO.

    Args:
        ratio: (N,), of tokens or of completions.
        advantages: (N,).
        delta: None: no upper bound where the advantage is negative.

    Returns:
        (N,); the gradient is r A where neither clip is active, else 0.
    """
    capped = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    return torch.minimum(capped * advantages, clipped * advantages)
