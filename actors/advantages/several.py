"""Advantages from several reward functions, when their sum is not what is normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from funicular.actors.advantage import Numbers_PG, group_advantages
from funicular.actors.advantages.whitening import whitened

Advantages_PG = list[list[float | None]]


def normalize_then_sum(rewards: Mapping[str, Numbers_PG], weights: Mapping[str, float]) -> Advantages_PG:
    """GDPO, arXiv 2601.05242: whiten(sum over functions of weight times the z-score in the group).

    z = (r - mean_g) / (std_g + 1e-4); the whitening is over all completions of the batch.

    Args:
        rewards: of each function, P groups of G rewards. A group of which a function says None throughout is one to
            which it does not apply; then it adds nothing there. A completion for which any function that applies to
            its group says None is void.
        weights: by function.

    Raises:
        ValueError: as `group_advantages`, or no function applies to a group.
    """
    void = _void(rewards)
    sums = _combined(rewards, void, lambda numbers: group_advantages(numbers, "group"), weights)
    return whitened(sums, "completions")


def average_advantages(
    rewards: Mapping[str, Numbers_PG], estimate: Callable[[Numbers_PG], Advantages_PG]
) -> Advantages_PG:
    """Mean over functions of each function's own advantages: the BNPO paper, arXiv 2506.02864 section 4.3.

    Args:
        rewards: as for `normalize_then_sum`; the mean is over the functions that apply to the group.
        estimate: advantages from one function's rewards.
    """
    void = _void(rewards)
    count_P = [sum(any(r is not None for r in rewards[name][p]) for name in rewards) for p in range(len(void))]
    sums = _combined(rewards, void, estimate, dict.fromkeys(rewards, 1.0))
    return [[None if a is None else a / n for a in group] for group, n in zip(sums, count_P, strict=True)]


def _combined(
    rewards: Mapping[str, Numbers_PG],
    void_PG: Sequence[Sequence[bool]],
    estimate: Callable[[Numbers_PG], Advantages_PG],
    weights: Mapping[str, float],
) -> Advantages_PG:
    """Weighted sum of the functions' advantages, each estimated over the groups to which it applies."""
    totals = [np.zeros(len(group)) for group in void_PG]
    applies = [False] * len(void_PG)
    for name in rewards:
        weight = weights[name]
        groups = [p for p, rewards_G in enumerate(rewards[name]) if any(r is not None for r in rewards_G)]
        numbers = [[None if void else r for r, void in zip(rewards[name][p], void_PG[p], strict=True)] for p in groups]
        for p, advantages_G in zip(groups, estimate(numbers), strict=True):
            applies[p] = True
            totals[p] += [0.0 if a is None else weight * a for a in advantages_G]
    for p, any_applies in enumerate(applies):
        if not any_applies:
            raise ValueError(f"group {p}: no reward function applies to it; drop such groups before")
    return [
        [None if void else float(total) for void, total in zip(void_G, total_G, strict=True)]
        for void_G, total_G in zip(void_PG, totals, strict=True)
    ]


def _void(rewards: Mapping[str, Numbers_PG]) -> list[list[bool]]:
    functions = list(rewards.values())
    return [
        [
            all(of_function[p][g] is None for of_function in functions)
            or any(
                of_function[p][g] is None and any(r is not None for r in of_function[p]) for of_function in functions
            )
            for g in range(len(functions[0][p]))
        ]
        for p in range(len(functions[0]))
    ]
