"""The six objectives J of one completion: what is maximised, for each trained token.

`ratio_T`, `lp_T` and `old_T` hold trained tokens only, `advantage_T` one advantage for each.
"""

import math
from collections.abc import Sequence

from tests.reference.complex_step import clipped, exp, larger, smaller, stopped


def ppo_clip(
    ratio_T: Sequence[complex],
    advantage_T: Sequence[float],
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None,
) -> list[complex]:
    """min( min(r, delta) A, clip(r) A )."""
    J_T = []
    for r, A in zip(ratio_T, advantage_T, strict=True):
        bounded = r if delta is None else smaller(r, delta)
        J_T.append(smaller(bounded * A, clipped(r, 1 - epsilon_low, 1 + epsilon_high) * A))
    return J_T


def cispo(
    ratio_T: Sequence[complex], lp_T: Sequence[complex], advantage_T: Sequence[float], ratio_cap: float
) -> list[complex]:
    """sg[ min(r, cap) ] A lp."""
    return [stopped(smaller(r, ratio_cap)) * A * lp for r, lp, A in zip(ratio_T, lp_T, advantage_T, strict=True)]


def sapo(
    ratio_T: Sequence[complex], advantage_T: Sequence[float], tau_positive: float, tau_negative: float
) -> list[complex]:
    """sigmoid(tau (r - 1)) 4 / tau A."""
    J_T = []
    for r, A in zip(ratio_T, advantage_T, strict=True):
        tau = tau_positive if A > 0 else tau_negative
        J_T.append(1 / (1 + exp(-tau * (r - 1))) * 4 / tau * A)
    return J_T


def vespo(
    lp_T: Sequence[complex],
    old_T: Sequence[float],
    advantage_T: Sequence[float],
    correction_T: Sequence[float],
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> list[complex]:
    """sg[phi] A lp; phi = e^lambda W^k e^(-lambda W); `positive` and `negative` are (k, lambda)."""
    log_W = 0.0
    for lp, old, w in zip(lp_T, old_T, correction_T, strict=True):
        log_W += min(max(lp.real - old, -20.0), 20.0) + math.log(max(w, 1e-8))
    log_W = min(max(log_W, math.log(1e-8)), 20.0)
    J_T = []
    for lp, A in zip(lp_T, advantage_T, strict=True):
        k, lam = positive if A >= 0 else negative
        phi = math.exp(lam + k * log_W - lam * math.exp(log_W))
        J_T.append(phi * A * lp)
    return J_T


def gmpo(
    lp_T: Sequence[complex],
    old_T: Sequence[float],
    advantage_T: Sequence[float],
    epsilon_low: float,
    epsilon_high: float,
) -> list[complex]:
    """exp( mean of the one-sidedly clipped log-ratios ) A."""
    total = 0j
    for lp, old, A in zip(lp_T, old_T, advantage_T, strict=True):
        total += smaller(lp - old, epsilon_high) if A > 0 else larger(lp - old, -epsilon_low)
    s = exp(total / len(lp_T)) if lp_T else 0j
    return [s * A for A in advantage_T]


def reinforce(lp_T: Sequence[complex], advantage_T: Sequence[float]) -> list[complex]:
    return [A * lp for lp, A in zip(lp_T, advantage_T, strict=True)]
