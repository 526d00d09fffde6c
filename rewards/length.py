"""Reward functions of a completion's length in tokens: length and overlong."""

from __future__ import annotations

from typing import Any


def length(
    completion_ids: list[list[int]], *, target: int | None = None, max: int | None = None, **_: Any
) -> list[float | None]:
    """Of tokens. With `target`: 1 there, falling linearly to 0 at 0 and at twice the target. With `max`: 1 up
    to it, falling linearly to 0 at twice as many. Give exactly one of the two."""
    if (target is None) == (max is None):
        raise ValueError(f"length: target={target}, max={max}; expected exactly one of them in reward.options.length")
    goal = target or max or 0
    if goal <= 0:
        raise ValueError(f"length: {goal} tokens; expected a number above 0")
    counts = [len(ids) for ids in completion_ids]
    over = [abs(n - goal) if target is not None or n > goal else 0 for n in counts]
    return [1.0 - distance / goal if distance < goal else 0.0 for distance in over]


def overlong(completion_ids: list[list[int]], *, max: int, cache: int, **_: Any) -> list[float | None]:
    """DAPO's soft overlong punishment: 0 up to max - cache tokens, falling linearly to -1 at max, -1 beyond.

    Source: DAPO, equation 13 (arXiv 2503.14476), with `max` for L_max and `cache` for L_cache.
    """
    if not 0 < cache <= max:
        raise ValueError(f"overlong: max={max}, cache={cache}; expected 0 < cache <= max, both in tokens")
    counts = [len(ids) for ids in completion_ids]
    return [0.0 if n <= max - cache else -1.0 if n > max else (max - cache - n) / cache for n in counts]
