"""The loss against an independent float64 implementation: value and gradient, every choice with every other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.loss import loss_from_tensors
from tests.loss_cases import (
    AGGREGATIONS,
    CORRECTIONS,
    DRIFTS,
    KL,
    MASKS,
    OBJECTIVES,
    assert_agree,
    computed,
    corrections_of,
    covering,
    make_batch,
    reference,
)

PAIRS = [(objective, level) for objective, levels in OBJECTIVES.items() for level in levels]
BYPASS = {"old_logprobs": None}


@pytest.mark.parametrize(("objective", "level"), PAIRS)
def test_every_pair_of_choices_agrees_with_the_reference(objective: str, level: str) -> None:
    for name, batch, options in covering(objective):
        assert_agree(make_batch(**batch), options | {"objective": objective, "ratio_level": level}, name)


@st.composite
def losses(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Any batch with any choices."""
    rows, width = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    masks = ["".join(draw(st.lists(st.sampled_from("0111"), min_size=width, max_size=width))) for _ in range(rows)]
    batch = make_batch(
        draw(st.sampled_from([*DRIFTS.values(), 4.0])),
        seed=draw(st.integers(0, 10_000)),
        per_token=draw(st.booleans()),
        masks=masks,
    )
    objective, level = draw(st.sampled_from(PAIRS))
    low, high = draw(st.sampled_from([(0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4), (0.9, 9.0)]))
    options = {
        "objective": objective,
        "ratio_level": level,
        "aggregation": draw(st.sampled_from(AGGREGATIONS)),
        "epsilon_low": low,
        "epsilon_high": high,
        "delta": draw(st.sampled_from([None, 1 + high + 0.01, 1 + high + 3])),
        "ratio_cap": draw(st.sampled_from([1.0, 1.1, 5.0])),
        "sapo_tau_positive": draw(st.sampled_from([1.0, 0.3])),
        "sapo_tau_negative": draw(st.sampled_from([1.05, 2.2])),
        "vespo_k_positive": draw(st.sampled_from([2.0, 1.1])),
        "vespo_lambda_negative": draw(st.sampled_from([2.0, 0.7])),
        "top_entropy_quantile": draw(st.sampled_from([1.0, 0.2, 0.7])),
        "entropy_coef": draw(st.sampled_from([0.0, 0.01])),
        "off_policy_threshold": draw(st.sampled_from([None, 0.0, 0.5])),
    }
    options |= KL[draw(st.sampled_from(list(KL)))]
    if draw(st.booleans()):
        options |= CORRECTIONS[draw(st.sampled_from(corrections_of(objective)))]
    else:
        batch |= BYPASS
    if draw(st.booleans()):  # these rows are a part of a larger optimizer batch
        tokens = int(batch["mask"].sum())
        batch |= {
            "rows": rows + draw(st.integers(0, 9)),
            "tokens": tokens + draw(st.integers(0, 99)),
            "group_count": rows + 2,
            "group_tokens": batch["mask"].sum(1) + 13,
            "entropy_tokens": tokens + 5,
            "entropy_threshold": 0.9,
        }
    return batch, options


@settings(deadline=None, max_examples=150)
@given(losses())
def test_any_batch_and_any_choices_agree_with_the_reference(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert_agree(*case)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bypass_agrees_also_where_the_generator_said_nothing(objective: str, aggregation: str) -> None:
    batch = make_batch(DRIFTS["near"]) | BYPASS
    assert np.isnan(batch["generator_logprobs"][batch["mask"] == 1]).any()
    assert_agree(batch, {"objective": objective, "aggregation": aggregation} | KL["k3_unbiased"])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_without_trained_tokens_is_a_connected_zero(objective: str, aggregation: str, mask: str) -> None:
    batch = make_batch(0.1, masks=["000", "000"])
    options = {"objective": objective, "aggregation": aggregation} | KL["k3"] | CORRECTIONS["sequence_mask"]
    if objective == "vespo":
        options |= CORRECTIONS["token_mask"]
    for dtype in (torch.float32, torch.float64):
        value, by_logprobs, by_entropies = computed(batch, options | MASKS[mask], dtype)
        assert value == 0
        assert not by_logprobs.any()
        assert not by_entropies.any()


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_unbiased"])
@pytest.mark.parametrize("distance", [1e-4, 1e-2])
def test_kl_close_to_the_reference_keeps_its_digits_in_float32(estimator: str, distance: float) -> None:
    """e^d - d - 1 of a small d is a difference of numbers close to 1."""
    batch = make_batch(0.01)
    batch["advantages"] = np.zeros_like(batch["advantages"])
    near = batch["logprobs"] + distance * np.random.default_rng(0).normal(size=batch["logprobs"].shape)
    batch["reference_logprobs"] = near.astype(np.float32).astype(np.float64)
    assert_agree(
        batch, {"aggregation": "token", "beta": 1.0, "kl_estimator": estimator}, dtypes=(torch.float32, torch.float64)
    )


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
@pytest.mark.parametrize("objective", ["ppo_clip", "cispo", "sapo"])
def test_a_ratio_beyond_float32_gives_numbers_and_no_nan(objective: str, level: str) -> None:
    """exp(100) is infinite in float32, and infinity times a gradient of 0 would be NaN."""
    batch = make_batch(0.0)
    batch["logprobs"] = batch["logprobs"] + 100.0
    batch["advantages"] = np.abs(batch["advantages"])
    options = {"objective": objective, "ratio_level": level, "aggregation": "sequence"}
    value, by_logprobs, _ = computed(batch, options, torch.float32)
    assert math.isfinite(value)
    assert torch.isfinite(by_logprobs).all()
    assert_agree(batch, options)


def test_the_gradient_of_a_saturated_sapo_gate_keeps_its_digits() -> None:
    batch = make_batch(0.0, masks=["1"])
    batch["logprobs"] = batch["old_logprobs"] + 3.0
    assert_agree(batch, {"objective": "sapo", "aggregation": "token"})


SMOOTH = [pair for pair in PAIRS if pair[0] not in ("cispo", "vespo") and pair[1] != "sequence_token"]
"""Objectives whose gradient is that of their value: nothing in them is held fixed."""


@pytest.mark.parametrize(("objective", "level"), SMOOTH)
def test_gradients_are_finite_differences(objective: str, level: str) -> None:
    batch = make_batch(0.3, seed=3)
    options = {"objective": objective, "ratio_level": level, "aggregation": "sequence"}
    options |= KL["k3_unbiased"] | CORRECTIONS["token_truncate"] | {"entropy_coef": 0.1}
    _, by_logprobs, by_entropies = computed(batch, options, torch.float64)
    h = 1e-6
    for name, gradient in (("logprobs", by_logprobs), ("entropies", by_entropies)):
        found = torch.zeros_like(gradient)
        for place in np.argwhere(batch["mask"] == 1):
            either_side = []
            for step in (h, -h):
                moved = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in batch.items()}
                moved[name][tuple(place)] += step
                either_side.append(computed(moved, options, torch.float64)[0])
            found[tuple(place)] = (either_side[0] - either_side[1]) / (2 * h)
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", ["cispo", "vespo"])
def test_gradients_with_what_is_held_fixed_are_finite_differences(objective: str) -> None:
    """The weight that stands before the log-probability is taken at the point, and not moved."""
    batch = make_batch(0.3, seed=3)
    options = {"objective": objective, "aggregation": "token"}
    _, gradient, _ = computed(batch, options, torch.float64)
    weights = reference(batch, options).gradient
    moved = sum(
        weight * lp
        for row, (weights_T, lp_T) in enumerate(zip(weights, batch["logprobs"], strict=True))
        for t, (weight, lp) in enumerate(zip(weights_T, lp_T, strict=True))
        if batch["mask"][row, t]
    )
    value, *_ = computed(batch, options, torch.float64)
    assert value == pytest.approx(moved, rel=1e-12)  # linear in the log-probabilities, with these coefficients
    torch.testing.assert_close(gradient, torch.tensor(weights, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta: got -0.1"),
        ({"entropy_coef": -0.1}, "entropy_coef: got -0.1"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile: got 0.0"),
        ({"advantages": torch.zeros(9, 1)}, r"advantages: got shape \(9, 1\), expected \(9,\) or \(9, 6\)"),
        ({"groups": torch.zeros(3)}, r"groups: got shape \(3,\)"),
        ({"group_tokens": torch.zeros(9, 6)}, r"group_tokens: got shape \(9, 6\)"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused(options: dict[str, Any], message: str) -> None:
    batch = make_batch(0.1)
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    with pytest.raises(ValueError, match=message):
        loss_from_tensors(**(tensors | {"aggregation": "token"} | options))
