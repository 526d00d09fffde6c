"""Advantages against the independent implementation, over random batches with void completions and equal rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.advantage import group_advantages
from funicular.actors.advantages.beta import beta_advantages
from funicular.actors.advantages.several import average_advantages, normalize_then_sum
from funicular.actors.advantages.whitening import whitened
from tests.reference import advantages as expected_of

SCALES = ["group", "batch", "batch_centred", "none"]
BASELINES = ["mean", "leave_one_out", "length_weighted", "none"]
# Numbers that are not dyadic, so that sums round; equal ones are common.
REWARD = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 0.7]), st.floats(-3, 3).map(lambda x: round(x, 4)))


def groups_of(reward: st.SearchStrategy[float], most: int = 5) -> st.SearchStrategy[list[list[float | None]]]:
    """1 to `most` groups of 2 to 6 completions, of which at least two are valid."""
    one = st.lists(st.one_of(reward, reward, reward, st.none()), min_size=2, max_size=6).filter(
        lambda group: sum(r is not None for r in group) >= 2
    )
    return st.lists(one, min_size=1, max_size=most)


def assert_close(got: list[list[float | None]], expected: list[list[float | None]], tolerance: float = 1e-10) -> None:
    """None where None is expected; an error is relative to the batch's largest advantage."""
    assert [[a is None for a in group] for group in got] == [[a is None for a in group] for group in expected]
    a, b = ([x for group in of for x in group if x is not None] for of in (got, expected))
    largest = max((abs(x) for x in b), default=0.0)
    # below 1e-6 an advantage is rounding of equal numbers, divided by an offset
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(largest, 1e-6))


@settings(deadline=None, max_examples=60)
@given(groups_of(REWARD), st.sampled_from(SCALES), st.sampled_from(BASELINES), st.randoms(use_true_random=False))
def test_baselines_and_scales(rewards: list[list[float | None]], scale: Any, baseline: str, random: Any) -> None:
    lengths = [[random.randint(1, 50) for _ in group] for group in rewards]
    got = group_advantages(rewards, scale, baseline=baseline, lengths_PG=lengths)
    assert_close(got, expected_of.group_advantages(rewards, scale, baseline, lengths))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_with_every_scale(baseline: str, scale: Any) -> None:
    rewards = [[0.3, None, 1.7, -0.4], [0.1] * 5, [2.0, 0.5, 0.5], [None, 1e3, 1e3 + 0.7, None]]
    lengths = [[3, 9, 14, 1], [4, 4, 5, 5, 5], [7, 1, 30], [2, 2, 5, 6]]
    got = group_advantages(rewards, scale, baseline=baseline, lengths_PG=lengths)
    assert_close(got, expected_of.group_advantages(rewards, scale, baseline, lengths))


@settings(deadline=None, max_examples=60)
@given(groups_of(REWARD), st.sampled_from([0.0, 5.0, 1e3]), st.randoms(use_true_random=False))
def test_whitening(advantages: list[list[float | None]], shift: float, random: Any) -> None:
    numbers = [[None if a is None else a + shift for a in group] for group in advantages]
    assert_close(whitened(numbers, "completions"), expected_of.whitened(numbers, "completions"))
    tokens = [[0 if a is None else random.choice([0, 1, 1, 7, 40]) for a in group] for group in numbers]
    if sum(map(sum, tokens)) >= 2:
        assert_close(whitened(numbers, "tokens", tokens), expected_of.whitened(numbers, "tokens", tokens))


@pytest.mark.parametrize("by", ["completions", "tokens"])
def test_whitening_equal_advantages_gives_exactly_zero(by: Any) -> None:
    numbers = [[0.1 + 0.2, 0.3, None], [0.3] * 9]
    tokens = [[3, 5, 0], [7] * 9]
    got = whitened(numbers, by, tokens)
    assert got == [[0.0, 0.0, None], [0.0] * 9]


@st.composite
def several_rewards(draw: st.DrawFn) -> dict[str, list[list[float | None]]]:
    """Two or three functions; a function may not apply to a group at all, or leave one completion void."""
    sizes = draw(st.lists(st.integers(4, 6), min_size=2, max_size=4))
    rewards: dict[str, list[list[float | None]]] = {}
    for name in ["a", "b", "c"][: draw(st.integers(2, 3))]:
        groups: list[list[float | None]] = []
        for size in sizes:
            numbers: list[float | None] = list(draw(st.lists(REWARD, min_size=size, max_size=size)))
            kind = draw(st.sampled_from(["all", "all", "all", "one void", "does not apply"]))
            if kind == "one void":
                numbers[draw(st.integers(0, 1))] = None
            if kind == "does not apply" and name != "a":
                numbers = [None] * size
            groups.append(numbers)
        rewards[name] = groups
    return rewards


@settings(deadline=None, max_examples=60)
@given(several_rewards(), st.lists(st.sampled_from([0.25, 1.0, 3.0, -0.5]), min_size=3, max_size=3))
def test_normalize_then_sum(rewards: dict[str, list[list[float | None]]], weights: list[float]) -> None:
    by_name = dict(zip("abc", weights, strict=True))
    assert_close(normalize_then_sum(rewards, by_name), expected_of.normalize_then_sum(rewards, by_name))


@settings(deadline=None, max_examples=60)
@given(several_rewards(), st.sampled_from(["group", "none"]))
def test_average_advantages(rewards: dict[str, list[list[float | None]]], scale: Any) -> None:
    """Each function's advantages are over the completions that no other function made void."""
    names = list(rewards)
    voided = {
        name: [
            [
                None
                if any(
                    rewards[other][p][i] is None and any(r is not None for r in rewards[other][p]) for other in names
                )
                else reward
                for i, reward in enumerate(group)
            ]
            for p, group in enumerate(rewards[name])
        ]
        for name in names
    }

    def reference(numbers: Any) -> Any:
        applying = [p for p, group in enumerate(numbers) if any(r is not None for r in group)]
        found = iter(expected_of.group_advantages([numbers[p] for p in applying], scale))
        return [next(found) if p in applying else [None] * len(group) for p, group in enumerate(numbers)]

    got = average_advantages(rewards, lambda numbers: group_advantages(numbers, scale))
    assert_close(got, expected_of.average_advantages(voided, reference))


@settings(deadline=None, max_examples=60)
@given(groups_of(st.integers(0, 16).map(lambda n: n / 16), most=8), st.sampled_from([(0.0, 1.0), (-2.0, 1.5)]))
def test_beta_normalization(scaled: list[list[float | None]], bounds: tuple[float, float]) -> None:
    low, high = bounds
    rewards = [[None if s is None else low + s * (high - low) for s in group] for group in scaled]
    got, fit = beta_advantages(rewards, low, high)
    assert_close(got, expected_of.beta_advantages(rewards, low, high))
    rates = [np.mean([(r - low) / (high - low) for r in group if r is not None]) for group in rewards]
    assert (fit.alpha, fit.beta) == pytest.approx(expected_of.beta_fit([float(p) for p in rates]), rel=1e-9)


@pytest.mark.parametrize("spread", [0.3, 0.05, 1e-2, 1e-3, 1e-4])
def test_beta_normalization_of_tasks_that_are_almost_equally_hard(spread: float) -> None:
    """alpha and beta grow like 1 / spread^2, and logarithms of their gamma functions lose digits."""
    rewards = [[0.5 + spread * k + 0.2, 0.5 + spread * k - 0.2] for k in (-1, 0, 1)]
    got, fit = beta_advantages(rewards)
    assert fit.alpha > 1
    assert_close(got, expected_of.beta_advantages(rewards), tolerance=1e-10)
