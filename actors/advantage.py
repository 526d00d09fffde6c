"""From rewards to advantages. Stable function: `group_advantages` (docs/algorithms.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funicular.actors.aggregation import RewardScale

STD_OFFSET = 1e-4
"""Added to a standard deviation before dividing by it (TRL)."""
_SPREAD_TOLERANCE = 1e-9


def group_advantages(rewards_PG: Sequence[Sequence[float | None]], scale: RewardScale) -> list[list[float | None]]:
    """Centre each group's rewards and divide them by the scale.

    GRPO, arXiv 2402.03300; without a scale Dr.GRPO, 2503.20783. All arithmetic is float64. A group whose
    rewards are all equal gets exactly 0, whatever rounding would leave.

    Args:
        rewards_PG: P groups of G rewards; None for void completions, which are in no mean and no deviation.
            All groups of the training batch, so that `batch` sees the whole batch. Groups may differ in size.
        scale: group: (r - mean_g) / (std_g + 1e-4); batch: (r - mean_g) / (std of all raw rewards + 1e-4),
            arXiv 2508.08221; none: r - mean_g. Standard deviations are unbiased (ddof 1).

    Returns:
        Advantages in the shape of the rewards; None for void completions.

    Raises:
        ValueError: a group has fewer than two valid rewards (the caller drops such groups), a reward is not
            finite, or the scale is unknown.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale_rewards: got {scale!r}, expected one of group, batch, none")
    valid_PG = [_valid_rewards(index, rewards_G) for index, rewards_G in enumerate(rewards_PG)]
    batch_std = _std(np.concatenate(valid_PG)) if valid_PG else 0.0
    return [
        _advantages_of_group(rewards_G, valid, scale, batch_std)
        for rewards_G, valid in zip(rewards_PG, valid_PG, strict=True)
    ]


def rewards_are_equal(rewards: np.ndarray) -> bool:
    """Whether rewards are equal up to rounding: 12 equal rewards of 1.69 can have a computed std above 0."""
    spread = float(rewards.max() - rewards.min())
    return spread <= _SPREAD_TOLERANCE * max(1.0, float(np.abs(rewards).max()))


def _valid_rewards(index: int, rewards_G: Sequence[float | None]) -> np.ndarray:
    valid = np.array([reward for reward in rewards_G if reward is not None], dtype=np.float64)
    if valid.size < 2:
        raise ValueError(
            f"group {index}: {valid.size} valid rewards of {len(rewards_G)}, expected at least 2 for a "
            "baseline; drop such groups before"
        )
    if not np.isfinite(valid).all():
        raise ValueError(f"group {index}: a reward is not finite: {list(rewards_G)}; None says that it is void")
    return valid


def _std(rewards: np.ndarray) -> float:
    return 0.0 if rewards_are_equal(rewards) else float(np.std(rewards, ddof=1))


def _advantages_of_group(
    rewards_G: Sequence[float | None], valid: np.ndarray, scale: RewardScale, batch_std: float
) -> list[float | None]:
    if rewards_are_equal(valid):
        return [None if reward is None else 0.0 for reward in rewards_G]
    mean = float(valid.mean())
    divisor = {"group": _std(valid) + STD_OFFSET, "batch": batch_std + STD_OFFSET, "none": 1.0}[scale]
    return [None if reward is None else (reward - mean) / divisor for reward in rewards_G]
