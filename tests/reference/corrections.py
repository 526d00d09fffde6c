"""What is done about a generator that is not the learner: weights w per trained token, and keep."""

import math
from collections.abc import Sequence


def differences(old_T: Sequence[float], generator_T: Sequence[float]) -> list[float]:
    """old - generator, and 0 where the generator reported nothing (NaN)."""
    return [0.0 if math.isnan(g) else old - g for old, g in zip(old_T, generator_T, strict=True)]


def correction_weights(
    mode: str,
    old_T: Sequence[float],
    generator_T: Sequence[float],
    floor: float | None,
    cap: float | None,
    geometric_floor: float,
    geometric_cap: float,
) -> list[float]:
    d_T = differences(old_T, generator_T)
    n = len(d_T)
    low = 0.0 if floor is None else floor
    high = math.inf if cap is None else cap
    if mode == "none":
        return [1.0] * n
    if mode == "token_truncate":
        return [min(max(math.exp(d), low), high) for d in d_T]
    if mode == "token_mask":
        return [math.exp(d) if low <= math.exp(d) <= high else 0.0 for d in d_T]
    if mode == "sequence_truncate":
        return [min(max(math.exp(sum(d_T)), low), high)] * n
    if mode == "sequence_mask":
        w = math.exp(sum(d_T))
        return [w if low <= w <= high else 0.0] * n
    if mode == "geometric_mask":
        mean = math.exp(sum(d_T) / n) if n else 1.0
        if not geometric_floor <= mean <= geometric_cap:
            return [0.0] * n
        bounded = floor is not None or cap is not None
        return [min(max(math.exp(d), low), high) if bounded else 1.0 for d in d_T]
    raise ValueError(mode)


def keep(
    advantage_T: Sequence[float], behaviour_T: Sequence[float], lp_T: Sequence[float], threshold: float
) -> list[float]:
    """DeepSeek-V3.2 eq. 9: 0 where A < 0 and the completion's mean of behaviour - lp exceeds the threshold."""
    if not lp_T:
        return []
    drift = sum(0.0 if math.isnan(b) else b - lp for b, lp in zip(behaviour_T, lp_T, strict=True)) / len(lp_T)
    return [1.0 if A >= 0 or drift <= threshold else 0.0 for A in advantage_T]
