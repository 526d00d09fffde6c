"""Advantages with mean 0 and variance 1 over the whole training batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from funicular.actors.advantage import STD_OFFSET, Numbers_PG, in_shape_of, unbiased_std

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
        mean, divisor = float(flat.mean()) if flat.size else 0.0, unbiased_std(flat) + STD_OFFSET
    else:
        if tokens_PG is None:
            raise ValueError("whiten_advantages: tokens needs the trained tokens of each completion")
        counts = np.array(
            [
                n
                for ns, group in zip(tokens_PG, advantages_PG, strict=True)
                for n, a in zip(ns, group, strict=True)
                if a is not None
            ],
            dtype=np.float64,
        )
        mean, divisor = token_whitener(*token_moments(counts, counts * flat, counts * flat**2))
    out = []
    for group in advantages_PG:
        valid = np.array([a for a in group if a is not None], dtype=np.float64)
        out.append(in_shape_of(group, (valid - mean) / divisor))
    return out


def token_moments(counts: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Mean and unbiased variance over tokens, from each completion's count, sum and sum of squares.

    (0, 0) without tokens; variance 0 for one token.
    """
    total = float(counts.sum())
    if total == 0:
        return 0.0, 0.0
    mean = float(sums.sum()) / total
    spread = max(0.0, float(squares.sum()) - total * mean**2)
    return mean, spread / (total - 1) if total > 1 else 0.0


def token_whitener(mean: float, variance: float) -> tuple[float, float]:
    """What to subtract, and what to divide by."""
    return mean, (variance + _VARIANCE_OFFSET) ** 0.5
