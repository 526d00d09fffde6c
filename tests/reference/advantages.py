"""Advantages by loops. `None` is a void completion: in no mean, deviation or count, and None again in the result."""

import math
from collections.abc import Callable, Mapping, Sequence

from mpmath import mp, mpf

from tests.reference.kl import k1_to_go

Rewards = Sequence[Sequence[float | None]]
Advantages = list[list[float | None]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], ddof: int = 1) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def valid(group: Sequence[float | None]) -> list[float]:
    return [r for r in group if r is not None]


def centred(group: Sequence[float | None], baseline: str, lengths: Sequence[int] | None) -> list[float | None]:
    """Each reward minus the group's baseline."""
    known = valid(group)
    result: list[float | None] = []
    for i, r in enumerate(group):
        if r is None:
            result.append(None)
        elif baseline == "none":
            result.append(r)
        elif len(set(known)) == 1:  # equal rewards say nothing, and rounding must not make them
            result.append(0.0)
        elif baseline == "mean":
            result.append(r - mean(known))
        elif baseline == "leave_one_out":
            result.append(r - mean([other for j, other in enumerate(group) if j != i and other is not None]))
        elif baseline == "length_weighted":
            assert lengths is not None
            pairs = [(n, other) for n, other in zip(lengths, group, strict=True) if other is not None]
            result.append(r - math.fsum(n * other for n, other in pairs) / sum(n for n, _ in pairs))
        else:
            raise ValueError(baseline)
    return result


def group_advantages(
    rewards_PG: Rewards, scale: str, baseline: str = "mean", lengths_PG: Sequence[Sequence[int]] | None = None
) -> Advantages:
    centred_PG = [
        centred(group, baseline, None if lengths_PG is None else lengths_PG[p]) for p, group in enumerate(rewards_PG)
    ]
    raw = [r for group in rewards_PG for r in valid(group)]
    all_centred = [a for group in centred_PG for a in valid(group)]
    result: Advantages = []
    for rewards, advantages in zip(rewards_PG, centred_PG, strict=True):
        if scale == "group":
            divisor = deviation(valid(rewards)) + 1e-4
        elif scale == "batch":
            divisor = deviation(raw) + 1e-4
        elif scale == "batch_centred":
            divisor = deviation(all_centred) + 1e-4
        else:
            assert scale == "none", scale
            divisor = 1.0
        result.append([None if a is None else a / divisor for a in advantages])
    return result


def whitened(advantages_PG: Rewards, by: str, tokens_PG: Sequence[Sequence[int]] | None = None) -> Advantages:
    if by == "completions":
        values = [a for group in advantages_PG for a in valid(group)]
        centre, divisor = mean(values), deviation(values) + 1e-4
    else:
        assert by == "tokens", by
        assert tokens_PG is not None
        values = []
        for group, tokens_G in zip(advantages_PG, tokens_PG, strict=True):
            for a, n in zip(group, tokens_G, strict=True):
                if a is not None:
                    values.extend([a] * n)
        centre, divisor = mean(values), math.sqrt(deviation(values) ** 2 + 1e-8)
    if len(set(values)) == 1:  # rounding must not make a difference of equal advantages
        return [[None if a is None else 0.0 for a in group] for group in advantages_PG]
    return [[None if a is None else (a - centre) / divisor for a in group] for group in advantages_PG]


def normalize_then_sum(rewards: Mapping[str, Rewards], weights: Mapping[str, float]) -> Advantages:
    """GDPO: z-scores per function and group, weighted, summed, whitened over the batch's completions."""
    shape = next(iter(rewards.values()))
    sums: Advantages = []
    for p, group in enumerate(shape):
        applying = [name for name in rewards if any(r is not None for r in rewards[name][p])]
        total_G: list[float | None] = []
        for i in range(len(group)):
            parts = [rewards[name][p][i] for name in applying]
            total_G.append(None if not applying or None in parts else 0.0)
        for name in applying:
            # A completion that another function left void is void here too.
            column = [None if total_G[i] is None else rewards[name][p][i] for i in range(len(group))]
            z_G = group_advantages([column], "group")[0]
            total_G = [
                None if t is None or z is None else t + weights[name] * z for t, z in zip(total_G, z_G, strict=True)
            ]
        sums.append(total_G)
    return whitened(sums, "completions")


def average_advantages(rewards: Mapping[str, Rewards], estimate: Callable[[Rewards], Advantages]) -> Advantages:
    """The BNPO paper's decomposition: the mean of each function's advantages, over those that apply to the group."""
    estimates = [estimate(rewards[name]) for name in rewards]
    shape = next(iter(rewards.values()))
    result: Advantages = []
    for p, group in enumerate(shape):
        row: list[float | None] = []
        for i in range(len(group)):
            parts = [advantages[p][i] for advantages in estimates]
            known = [a for a in parts if a is not None]
            row.append(math.fsum(known) / len(known) if known else None)
        result.append(row)
    return result


def beta_fit(rates_P: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of the BNPO paper from the groups' mean rewards; (1, 1) without variance."""
    if len(rates_P) < 2 or len(set(rates_P)) == 1:
        return 1.0, 1.0
    mu, v = mean(rates_P), deviation(rates_P) ** 2
    common = mu * (1 - mu) / v - 1
    return max(1.0, 1 + common * mu / 3), max(1.0, 1 + common * (1 - mu) / 3)


def beta_advantages(rewards_PG: Rewards, reward_min: float = 0.0, reward_max: float = 1.0) -> Advantages:
    """(s - p) min(1 / f(p; alpha, beta), 1e6) with the density in 50 digits."""
    scaled = [[None if r is None else (r - reward_min) / (reward_max - reward_min) for r in g] for g in rewards_PG]
    rates = [mean(valid(group)) for group in scaled]
    alpha, beta = beta_fit(rates)
    result: Advantages = []
    for group, p in zip(scaled, rates, strict=True):
        weight = beta_weight(p, alpha, beta)
        equal = len(set(valid(group))) == 1
        result.append([None if s is None else 0.0 if equal else (s - p) * weight for s in group])
    return result


def beta_weight(p: float, alpha: float, beta: float) -> float:
    with mp.workdps(50):
        a, b, x = mpf(alpha), mpf(beta), mpf(p)
        density = x ** (a - 1) * (1 - x) ** (b - 1) / mp.beta(a, b)
        return float(min(1 / density, mpf(10) ** 6)) if density > 0 else 1e6


def token_advantages(
    advantages_B: Sequence[float],
    old_BT: Sequence[Sequence[float]],
    reference_BT: Sequence[Sequence[float]],
    beta: float,
    *,
    whiten: bool,
) -> list[list[float]]:
    """REINFORCE++: per trained token the completion's advantage minus beta times the k1 still to come."""
    result = [
        [A - beta * to_go for to_go in k1_to_go(old_T, reference_T)]
        for A, old_T, reference_T in zip(advantages_B, old_BT, reference_BT, strict=True)
    ]
    if not whiten:
        return result
    values = [a for row in result for a in row]
    centre, divisor = mean(values), math.sqrt(deviation(values) ** 2 + 1e-8)
    return [[(a - centre) / divisor for a in row] for row in result]
