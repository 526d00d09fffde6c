"""pass@k of tasks with several completions each, and means over tasks with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over tasks."""

    value: float
    tasks: int
    """That it is the mean of."""
    low: float | None
    high: float | None
    """Ends of the interval (`bootstrap_interval`); None: these tasks say nothing of how far they differ."""


def pass_at_k(completions: int, passed: int, k: int) -> float:
    """Probability that one of `k` completions passes, without bias: 1 - C(n-c, k) / C(n, k) (arXiv 2107.03374, eq. 1).

    Args:
        completions: n, those that were judged; at least k.
        passed: c, those of them that passed.

    Raises:
        ValueError: there are fewer than k.
    """
    if not 1 <= k <= completions:
        raise ValueError(f"pass@{k}: expected k from 1 to the {completions} completions of the task")
    return 1 - math.comb(completions - passed, k) / math.comb(completions, k)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value for each task, at least one, and its interval."""
    low, high = bootstrap_interval(values) or (None, None)
    return Estimate(value=math.fsum(values) / len(values), tasks=len(values), low=low, high=high)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Percentile bootstrap over tasks: tasks are drawn with replacement, 10,000 times, and the middle 95 % of the
    means are the interval. The same values give the same interval.

    None where all values are equal: every mean would be that value, which is no statement about other tasks.
    """
    import numpy as np

    if min(values) == max(values):
        return None
    array = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(0)
    means = [array[random.integers(len(array), size=len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
