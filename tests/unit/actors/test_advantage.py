from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.advantage import group_advantages

REWARD = st.floats(-10, 10).map(lambda x: round(x, 3))
GROUPS = st.lists(st.lists(REWARD, min_size=2, max_size=6), min_size=1, max_size=4)


def test_group_scale_divides_by_the_unbiased_deviation_plus_its_offset() -> None:
    std = statistics.stdev([1.0, 0.0, 0.0, 1.0])
    expected = 0.5 / (std + 1e-4)
    (got,) = group_advantages([[1.0, 0.0, 0.0, 1.0]], "group")
    assert got == pytest.approx([expected, -expected, -expected, expected], rel=1e-12)


def test_none_only_centres() -> None:
    assert group_advantages([[3.0, 0.0, 0.0]], "none") == [[2.0, -1.0, -1.0]]


def test_batch_scale_is_the_deviation_of_the_raw_rewards_of_all_groups() -> None:
    rewards = [[1.0, 0.0], [5.0, 6.0]]
    std = statistics.stdev([1.0, 0.0, 5.0, 6.0])
    got = group_advantages(rewards, "batch")
    assert got[0] == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4)], rel=1e-12)
    assert got[1] == pytest.approx([-0.5 / (std + 1e-4), 0.5 / (std + 1e-4)], rel=1e-12)


def test_void_completions_are_in_no_mean_and_no_deviation() -> None:
    (with_void,) = group_advantages([[1.0, None, 0.0, None]], "group")
    (without,) = group_advantages([[1.0, 0.0]], "group")
    assert with_void == [without[0], None, without[1], None]


def test_void_completions_do_not_move_the_batch_deviation() -> None:
    with_void = group_advantages([[1.0, None, 0.0], [2.0, 4.0]], "batch")
    without = group_advantages([[1.0, 0.0], [2.0, 4.0]], "batch")
    assert with_void[1] == without[1]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero_whatever_rounding_says(scale: str) -> None:
    equal = [0.1 + 0.2] * 5 + [0.3] * 6
    assert statistics.pstdev(equal) > 0
    assert group_advantages([equal, [0.0, 1.0]], scale)[0] == [0.0] * 11  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [[1.0], [1.0, None], [None, None], []])
def test_fewer_than_two_valid_rewards_are_refused(group: list[float | None]) -> None:
    with pytest.raises(ValueError, match=r"group 1: .* valid rewards"):
        group_advantages([[0.0, 1.0], group], "group")


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_advantages([[math.nan, 1.0, 0.0]], "group")


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale_rewards: got 'std'"):
        group_advantages([[0.0, 1.0]], "std")  # type: ignore[arg-type]


@settings(deadline=None)
@given(GROUPS, st.sampled_from(["group", "batch", "none"]), st.floats(-100, 100))
def test_advantages_sum_to_zero_and_ignore_a_shift_of_all_rewards(
    rewards: list[list[float]], scale: str, shift: float
) -> None:
    got = group_advantages(rewards, scale)  # type: ignore[arg-type]
    shifted = group_advantages([[r + shift for r in group] for group in rewards], scale)  # type: ignore[arg-type]
    for a, b in zip(got, shifted, strict=True):
        assert sum(x for x in a if x is not None) == pytest.approx(0, abs=1e-9)
        assert b == pytest.approx(a, rel=1e-5, abs=1e-7)
