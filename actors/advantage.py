"""Rewards against a baseline of their group. Stable function: `group_advantages` (docs/algorithms.md).

What is built on it stands in `actors/advantages/`: the Beta normaliser, several rewards, whitening.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funicular.actors.losses.presets import RewardScale

STD_OFFSET = 1e-4
"""Added to a standard deviation before dividing by it (TRL)."""
BASELINES = ("mean", "leave_one_out", "length_weighted", "none")
SCALES = ("group", "batch", "batch_centred", "none")
_SPREAD_TOLERANCE = 1e-9

Numbers_PG = Sequence[Sequence[float | None]]


def group_advantages(
    rewards_PG: Numbers_PG,
    scale: RewardScale,
    *,
    baseline: str = "mean",
    lengths_PG: Sequence[Sequence[int]] | None = None,
) -> list[list[float | None]]:
    """Take each group's baseline from its rewards and divide them by the scale.

    All arithmetic is float64. A group whose rewards are all equal gets exactly 0 from every baseline but none,
    whatever rounding would leave.

    Args:
        rewards_PG: P groups of G rewards; None for void completions, which are in no mean and no deviation.
            All groups of the training batch, so that `batch` sees the whole batch. Groups may differ in size.
        scale: group: (std_g + 1e-4), GRPO, arXiv 2402.03300; batch: (std of all raw rewards + 1e-4), 2508.08221;
            batch_centred: (std of all rewards after their baseline + 1e-4), ScaleRL, 2510.13786; none: 1, Dr.GRPO,
            2503.20783. Standard deviations are unbiased (ddof 1).
        baseline: mean: of the group; leave_one_out: of the group's others, RLOO, 2402.14740; length_weighted:
            sum(length r) / sum(length), OPO, 2505.23585; none: 0, REINFORCE.
        lengths_PG: tokens of each completion; needed by length_weighted.

    Returns:
        Advantages in the shape of the rewards; None for void completions.

    Raises:
        ValueError: a group has fewer than two valid rewards (the caller drops such groups), a reward is not
            finite, scale or baseline is unknown, or lengths are missing.
    """
    if scale not in SCALES:
        raise ValueError(f"scale_rewards: got {scale!r}, expected one of {', '.join(SCALES)}")
    if baseline not in BASELINES:
        raise ValueError(f"baseline: got {baseline!r}, expected one of {', '.join(BASELINES)}")
    if baseline == "length_weighted" and lengths_PG is None:
        raise ValueError("baseline: length_weighted needs the lengths of the completions")
    valid_PG = [valid_rewards(index, rewards_G) for index, rewards_G in enumerate(rewards_PG)]
    centred_PG = [
        _centred(rewards, baseline, _valid_lengths(rewards_PG[p], None if lengths_PG is None else lengths_PG[p]))
        for p, rewards in enumerate(valid_PG)
    ]
    divisors = _divisors(valid_PG, centred_PG, scale)
    return [
        in_shape_of(rewards_G, centred / divisor)
        for rewards_G, centred, divisor in zip(rewards_PG, centred_PG, divisors, strict=True)
    ]


def rewards_are_equal(rewards: np.ndarray) -> bool:
    """Whether rewards are equal up to rounding: 12 equal rewards of 1.69 can have a computed std above 0."""
    spread = float(rewards.max() - rewards.min())
    return spread <= _SPREAD_TOLERANCE * max(1.0, float(np.abs(rewards).max()))


def valid_rewards(index: int, rewards_G: Sequence[float | None]) -> np.ndarray:
    """The rewards that are not void, (valid,) float64.

    Raises:
        ValueError: there are fewer than two, or one is not finite.
    """
    valid = np.array([reward for reward in rewards_G if reward is not None], dtype=np.float64)
    if valid.size < 2:
        raise ValueError(
            f"group {index}: {valid.size} valid rewards of {len(rewards_G)}, expected at least 2 for a "
            "baseline; drop such groups before"
        )
    if not np.isfinite(valid).all():
        raise ValueError(f"group {index}: a reward is not finite: {list(rewards_G)}; None says that it is void")
    return valid


def unbiased_std(values: np.ndarray) -> float:
    """Standard deviation with ddof 1; exactly 0 where all values are equal, or there is only one."""
    return 0.0 if values.size < 2 or rewards_are_equal(values) else float(np.std(values, ddof=1))


def in_shape_of(like_G: Sequence[float | None], valid: np.ndarray) -> list[float | None]:
    """The valid completions' numbers where they stand in the group; None for void ones."""
    numbers = iter(valid.tolist())
    return [None if value is None else next(numbers) for value in like_G]


def _valid_lengths(rewards_G: Sequence[float | None], lengths_G: Sequence[int] | None) -> np.ndarray | None:
    if lengths_G is None:
        return None
    pairs = zip(rewards_G, lengths_G, strict=True)
    return np.array([length for reward, length in pairs if reward is not None], dtype=np.float64)


def _centred(rewards: np.ndarray, baseline: str, lengths: np.ndarray | None) -> np.ndarray:
    if baseline == "none":
        return rewards
    if rewards_are_equal(rewards):
        return np.zeros_like(rewards)
    if baseline == "leave_one_out":
        return (rewards - rewards.mean()) * (rewards.size / (rewards.size - 1))
    if baseline == "length_weighted" and lengths is not None:
        if not lengths.sum() > 0:
            raise ValueError("baseline: length_weighted needs a completion that is not empty")
        return rewards - float(lengths @ rewards) / float(lengths.sum())
    return rewards - rewards.mean()


def _divisors(valid_PG: Sequence[np.ndarray], centred_PG: Sequence[np.ndarray], scale: str) -> list[float]:
    if scale == "group":
        return [unbiased_std(rewards) + STD_OFFSET for rewards in valid_PG]
    if scale == "none" or not valid_PG:
        return [1.0] * len(valid_PG)
    batch = np.concatenate(valid_PG if scale == "batch" else centred_PG)
    return [unbiased_std(batch) + STD_OFFSET] * len(valid_PG)
