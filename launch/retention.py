"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping


def kept(values: Mapping[int, float | None], *, keep_last: int, keep_best: int) -> set[int]:
    """Steps of the checkpoints that stay: the newest ones, and those with the highest values besides.

    Args:
        values: step to the measured value of the evaluation metric; None: not measured, and never among the best.
    """
    newest = sorted(values)[-keep_last:] if keep_last else []
    measured = [(value, step) for step, value in values.items() if value is not None and math.isfinite(value)]
    best = sorted(measured, reverse=True)[:keep_best]  # of equal ones the newer
    return {*newest, *(step for _, step in best)}
