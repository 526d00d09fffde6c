"""Beta-Normalization Policy Optimization, arXiv 2506.02864: an advantage normaliser fitted to the batch's pass rates.

Not TRL's loss of the same abbreviation, which is a token mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from funicular.actors.advantage import Numbers_PG, in_shape_of, rewards_are_equal, valid_rewards

MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaFit:
    """What was fitted to the mean rewards p of the batch's groups, scaled to [0, 1]."""

    alpha: float
    beta: float
    """The normaliser's parameters, each at least 1; both 1: no normalisation."""
    mean: float
    variance: float
    """Of p, unbiased."""
    max_weight: float
    capped_frac: float
    """Part of the groups whose weight reached 1e6."""


def beta_advantages(
    rewards_PG: Numbers_PG, reward_min: float = 0.0, reward_max: float = 1.0
) -> tuple[list[list[float | None]], BetaFit]:
    """(s - p_g) / f(p_g; alpha, beta), with f the density of a Beta distribution and the weight at most 1e6.

    s are rewards scaled to [0, 1], p_g their mean in the group; Beta(a, b) is fitted to all p_g by moments, and
    alpha = max(1, 1 + a / 3), beta = max(1, 1 + b / 3) minimise the gradient's variance (eq. 9 to 12). Without
    spread among the p_g, or with a single group, alpha = beta = 1: centring only (the authors' code gives NaN).

    Args:
        rewards_PG: all groups of the training batch; None for void completions.

    Returns:
        Advantages in the shape of the rewards, and the fit.

    Raises:
        ValueError: as `group_advantages`, there is no group, or a reward lies outside [reward_min, reward_max].
    """
    if not reward_max > reward_min:
        raise ValueError(f"beta_reward_max: got {reward_max}, expected more than beta_reward_min = {reward_min}")
    if not rewards_PG:
        raise ValueError("baseline: beta needs at least one group")
    scaled_PG = []
    for index, rewards_G in enumerate(rewards_PG):
        valid = valid_rewards(index, rewards_G)
        if valid.min() < reward_min or valid.max() > reward_max:
            raise ValueError(
                f"group {index}: rewards from {valid.min():g} to {valid.max():g}, expected them in "
                f"[{reward_min:g}, {reward_max:g}]; set algorithm.beta_reward_min and algorithm.beta_reward_max"
            )
        scaled_PG.append((valid - reward_min) / (reward_max - reward_min))
    means = np.array([scaled.mean() for scaled in scaled_PG])
    alpha, beta, mean, variance = _fit(means)
    weights = np.array([_weight(p, alpha, beta) for p in means])
    advantages = [
        np.zeros_like(scaled) if rewards_are_equal(scaled) else (scaled - p) * weight
        for scaled, p, weight in zip(scaled_PG, means, weights, strict=True)
    ]
    fit = BetaFit(
        alpha=alpha,
        beta=beta,
        mean=mean,
        variance=variance,
        max_weight=float(weights.max()),
        capped_frac=float((weights >= MAX_WEIGHT).mean()),
    )
    return [in_shape_of(rewards_G, a) for rewards_G, a in zip(rewards_PG, advantages, strict=True)], fit


def _fit(means: np.ndarray) -> tuple[float, float, float, float]:
    """alpha, beta, and the moments."""
    if means.size < 2 or rewards_are_equal(means):
        return 1.0, 1.0, float(means.mean()) if means.size else 0.0, 0.0
    mean, variance = float(means.mean()), float(means.var(ddof=1))
    common = mean * (1 - mean) / variance - 1
    a, b = common * mean, common * (1 - mean)
    return max(1.0, 1 + a / 3), max(1.0, 1 + b / 3), mean, variance


def _weight(p: float, alpha: float, beta: float) -> float:
    """1 / density at p, at most MAX_WEIGHT."""
    if (p <= 0 and alpha > 1) or (p >= 1 and beta > 1):  # the density is 0
        return MAX_WEIGHT
    if alpha == 1 or beta == 1:  # so that 0^0 is 1
        log_density = math.log(max(alpha, beta)) + (
            (alpha - 1) * math.log(p) if alpha > 1 else (beta - 1) * math.log1p(-p) if beta > 1 else 0.0
        )
    else:
        log_density = _log_density(p, alpha, beta)
    return math.exp(min(-log_density, math.log(MAX_WEIGHT)))


def _log_density(p: float, alpha: float, beta: float) -> float:
    """Logarithm of the Beta distribution's density at p, 0 < p < 1.

    By Stirling's formula around the mean (Loader 2000), because tasks that are almost equally hard make alpha and
    beta large, and the logarithms of their gamma functions would cancel to few digits.
    """
    total = alpha + beta
    off_mean = p - alpha / total
    deviance = alpha * math.log1p(off_mean * total / alpha) + beta * math.log1p(-off_mean * total / beta)
    remainder = _stirling_remainder(total) - _stirling_remainder(alpha) - _stirling_remainder(beta)
    scale = math.log(alpha * beta / (2 * math.pi * total)) / 2
    return remainder + scale + deviance - math.log(p) - math.log1p(-p)


def _stirling_remainder(x: float) -> float:
    """log Gamma(x) - ((x - 1/2) log x - x + log(2 pi) / 2), for x of at least 1."""
    if x < 15:
        return math.lgamma(x) - ((x - 0.5) * math.log(x) - x + math.log(2 * math.pi) / 2)
    y = 1 / (x * x)
    return (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x
