"""Advantages with mean 0 and variance 1 over the whole training batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from funicular.actors.advantage import STD_OFFSET, Numbers_PG, in_shape_of, rewards_are_equal, unbiased_std

_VARIANCE_OFFSET = 1e-8


def whitened(
    advantages_PG: Numbers_PG,
    by: Literal["completions", "tokens"],
    tokens_PG: Sequence[Sequence[int]] | None = None,
) -> list[list[float | None]]:
    """Subtract the batch's mean from all advantages and divide by its deviation.

    completions: (A - mean) / (std + 1e-4), each completion once (TRL's normalize_advantages). tokens:
    (A - mean) / sqrt(variance + 1e-8), each trained token once, so that long completions weigh more: REINFORCE++,
    arXiv 2501.03262. Variances are unbiased. Where all advantages are equal, all become 0.

    Args:
        advantages_PG: None for void completions, which stay None.
        tokens_PG: trained tokens of each completion; needed for tokens.

    Raises:
        ValueError: tokens are missing.
    """
    flat = np.array([a for group in advantages_PG for a in group if a is not None], dtype=np.float64)
    if by == "completions":
        counts = np.ones_like(flat)
    elif tokens_PG is None:
        raise ValueError("whiten_advantages: tokens needs the trained tokens of each completion")
    else:
        groups = zip(tokens_PG, advantages_PG, strict=True)
        pairs = (pair for ns, group in groups for pair in zip(ns, group, strict=True))
        counts = np.array([n for n, a in pairs if a is not None], dtype=np.float64)
    counted = flat[counts > 0]
    if not counted.size or rewards_are_equal(counted):
        mean, divisor = 0.0, math.inf
    elif by == "completions":
        mean, divisor = float(flat.mean()), unbiased_std(flat) + STD_OFFSET
    else:
        mean, divisor = token_whitener(counts, flat)
    out = []
    for group in advantages_PG:
        valid = np.array([a for a in group if a is not None], dtype=np.float64)
        out.append(in_shape_of(group, (valid - mean) / divisor))
    return out


def token_whitener(
    counts: np.ndarray, advantages: np.ndarray, kl_sums: float | np.ndarray = 0.0, kl_squares: float | np.ndarray = 0.0
) -> tuple[float, float]:
    """What to subtract from tokens' advantages, and what to divide by; (0, 1e-4) without tokens.

    A token's advantage is its completion's minus a KL term of its own.

    Args:
        counts: (R,) tokens of each completion.
        advantages: (R,) of completions.
        kl_sums: (R,) sum over each completion's tokens of the KL term.
        kl_squares: (R,) sum of its squares.
    """
    total = float(counts.sum())
    if total == 0:
        return 0.0, _VARIANCE_OFFSET**0.5
    mean = float((counts * advantages - kl_sums).sum()) / total
    # squares around the mean: without it, a mean far from 0 would leave few digits of the variance
    away = advantages - mean
    spread = float((counts * away**2 - 2 * away * kl_sums + kl_squares).sum())
    variance = max(0.0, spread) / (total - 1) if total > 1 else 0.0
    return mean, (variance + _VARIANCE_OFFSET) ** 0.5
