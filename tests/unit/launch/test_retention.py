"""Which checkpoints stay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.launch.retention import kept


@pytest.mark.parametrize(
    ("values", "keep_last", "keep_best", "expected"),
    [
        ({}, 2, 2, set()),
        ({1: None, 2: None, 3: None}, 2, 2, {2, 3}),
        ({1: 0.9, 2: 0.5, 3: 0.7, 4: None}, 1, 2, {1, 3, 4}),
        ({1: 0.9, 2: 0.5, 3: 0.7}, 1, 0, {3}),
        ({1: 0.5, 2: 0.5, 3: 0.5, 4: None}, 1, 1, {3, 4}),
        ({1: 0.1, 2: 0.9}, 1, 1, {2}),
        ({1: math.nan, 2: 0.1, 3: None}, 1, 1, {2, 3}),
    ],
    ids=["nothing", "unmeasured", "best", "no-best", "equal", "newest-is-best", "nan"],
)
def test_the_newest_stay_and_the_best_besides(
    values: dict[int, float | None], keep_last: int, keep_best: int, expected: set[int]
) -> None:
    assert kept(values, keep_last=keep_last, keep_best=keep_best) == expected


@given(
    values=st.dictionaries(st.integers(0, 50), st.none() | st.floats()),
    keep_last=st.integers(1, 5),
    keep_best=st.integers(0, 5),
)
def test_one_that_was_not_measured_is_never_among_the_best(
    values: dict[int, float | None], keep_last: int, keep_best: int
) -> None:
    stay = kept(values, keep_last=keep_last, keep_best=keep_best)
    newest = set(sorted(values)[-keep_last:])
    assert newest <= stay
    best = {step: values[step] for step in stay - newest}
    assert len(best) <= keep_best
    assert all(value is not None and math.isfinite(value) for value in best.values())
    measured = sum(value is not None and math.isfinite(value) for value in values.values())
    assert len([s for s in stay if values[s] is not None and math.isfinite(values[s])]) >= min(keep_best, measured)
