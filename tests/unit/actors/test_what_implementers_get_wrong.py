"""One test or more for each known mistake; the numbers are those of the list in the project's specification of losses.

Expected numbers are worked out by hand here, so that this file does not depend on the reference implementation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors import deepspeed_engine
from funicular.actors.advantage import group_advantages
from funicular.actors.advantages.beta import beta_advantages
from funicular.actors.advantages.several import average_advantages, normalize_then_sum
from funicular.actors.config import AlgorithmConfig
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.presets import PRESETS, loss_settings
from funicular.actors.losses.settings import LossSettings
from funicular.actors.packing import PlannedRow
from funicular.actors.step_plan import StepPlan, plan_step
from funicular.actors.token_logprobs import token_logprobs
from funicular.launch.checks import check
from funicular.launch.config import Config
from tests.averaging_engine import FakeAveragingEngine
from tests.builders import make_group

LOG2 = math.log(2)
NAN, INF = math.nan, math.inf


def gradient(
    logprobs: list[list[float]],
    *,
    old: list[list[float]] | None = None,
    advantages: list[float] | None = None,
    mask: list[list[int]] | None = None,
    aggregation: Any = "sequence_sum",
    **options: Any,
) -> list[list[float]]:
    """Of the loss by the log-probabilities. By default all tokens are trained, the old policy is log-probability 0
    throughout, advantages are 1, and a token's weight is 1 / rows."""
    lp = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    tensors = {
        name: torch.tensor(options.pop(name), dtype=torch.float64)
        for name in ("reference_logprobs", "generator_logprobs", "entropies")
        if name in options
    }
    loss = loss_from_tensors(
        lp,
        torch.zeros_like(lp).detach() if old is None else torch.tensor(old, dtype=torch.float64),
        torch.ones(len(logprobs), dtype=torch.float64)
        if advantages is None
        else torch.tensor(advantages, dtype=torch.float64),
        torch.ones_like(lp) if mask is None else torch.tensor(mask),
        aggregation=aggregation,
        **tensors,
        **options,
    )
    assert torch.isfinite(loss)
    return torch.autograd.grad(loss, lp)[0].tolist()


def approx(rows: list[list[float]]) -> Any:
    return [pytest.approx(row, rel=1e-12, abs=1e-15) for row in rows]


def plan(groups: list[Any], *, ranks: int = 1, micro_batch_tokens: int = 10_000, **algorithm: Any) -> StepPlan:
    return plan_step(groups, AlgorithmConfig(**algorithm), ranks, micro_batch_tokens, 16)


def rows_of(step: StepPlan) -> list[PlannedRow]:
    return [row for rank in step.ranks for batch in rank.optimizer_batches for micro in batch for row in micro.rows]


def uneven_groups() -> list[Any]:
    return [make_group(f"g{i}", rewards_G=[0.0, 1.0], lengths_G=[i + 1, 3 * i + 1]) for i in range(5)]


@pytest.mark.parametrize(("ranks", "micro_batch_tokens"), [(1, 10_000), (1, 1), (3, 20), (5, 1)])
def test_01_the_token_loss_is_divided_once_by_all_tokens_of_the_optimizer_batch(
    ranks: int, micro_batch_tokens: int
) -> None:
    rows = rows_of(plan(uneven_groups(), ranks=ranks, micro_batch_tokens=micro_batch_tokens, loss="dapo"))
    tokens = sum(row.completion_tokens for row in rows)
    assert tokens == sum(i + 1 + 3 * i + 1 for i in range(5))
    assert {row.token_weight for row in rows} == {1 / tokens}


@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_02_gradients_are_sums_over_ranks_and_micro_batches(ranks: int, accumulation_steps: int) -> None:
    """DeepSpeed averages over ranks and divides by accumulation steps; the loss has been divided before."""
    parameter = torch.zeros(2, requires_grad=True)
    expected = torch.zeros(2)
    for rank in range(ranks):
        engine = FakeAveragingEngine(ranks, accumulation_steps)
        for step in range(accumulation_steps):
            slope = torch.tensor([1.0 + rank, 10.0**step])
            deepspeed_engine.backward(engine, (parameter * slope).sum(), ranks)
            expected += slope
    torch.testing.assert_close(parameter.grad, expected)


def test_03_dr_grpo_divides_by_the_configured_length_and_by_no_deviation() -> None:
    lp = [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    mask = [[1, 1, 0, 0], [1, 0, 0, 0]]
    got = gradient(lp, mask=mask, aggregation="constant", max_completion_tokens=100)
    assert got == approx([[-1 / 200, -1 / 200, 0, 0], [-1 / 200, 0, 0, 0]])
    (normaliser,) = plan([make_group("g", rewards_G=[1.0, 0.0], lengths_G=[3, 5])], loss="dr_grpo").normalisers
    assert normaliser.token_weight(3, 8) == normaliser.token_weight(5, 8) == 1 / (2 * 16)
    step = plan([make_group("g", rewards_G=[4.0, 0.0], lengths_G=[3, 5])], loss="dr_grpo")
    assert sorted(row.advantage for row in rows_of(step)) == [-2.0, 2.0]


def test_04_bnpo_is_a_token_mean_over_the_optimizer_batch_and_not_the_beta_normaliser() -> None:
    assert PRESETS["bnpo"] == replace(PRESETS["grpo"], aggregation="token")
    paper = PRESETS["beta_normalization"]
    assert (paper.baseline, paper.scale_rewards, paper.aggregation) == ("beta", "none", "sequence_sum")
    assert (paper.epsilon_low, paper.epsilon_high, paper.delta) == (0.2, 0.28, 10.0)
    whole = {row.token_weight for row in rows_of(plan(uneven_groups(), loss="bnpo"))}
    cut = {row.token_weight for row in rows_of(plan(uneven_groups(), loss="bnpo", ranks=2, micro_batch_tokens=1))}
    assert whole == cut == {1 / 50}


@pytest.mark.parametrize("aggregation", ["sequence", "constant", "sequence_sum"])
def test_05_empty_rows_stay_in_the_row_count(aggregation: str) -> None:
    lp = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    mask = [[1, 1], [0, 0], [1, 0]]
    row_sums = [sum(row) for row in gradient(lp, mask=mask, aggregation=aggregation, max_completion_tokens=4)]
    expected = {"sequence": [1 / 3, 0, 1 / 3], "constant": [2 / 12, 0, 1 / 12], "sequence_sum": [2 / 3, 0, 1 / 3]}
    assert row_sums == pytest.approx([-x for x in expected[aggregation]])
    group = make_group("g", rewards_G=[1.0, 0.0, 0.0], lengths_G=[4, 6, 5], truncated_G=[False, True, False])
    step = plan([group], loss="grpo", aggregation=aggregation, mask_truncated_completions=True)
    assert step.normalisers[0].rows == 3
    expected_weight = {"sequence": 1 / (4 * 3), "constant": 1 / (3 * 16), "sequence_sum": 1 / 3}[aggregation]
    assert next(row for row in rows_of(step) if row.completion == 0).token_weight == pytest.approx(expected_weight)


def test_06_deviations_have_ddof_1_and_the_offset_1e_4() -> None:
    """Of 1, 0, 0, 0 the unbiased deviation is 1/2, the population's 0.433."""
    (got,) = group_advantages([[1.0, 0.0, 0.0, 0.0]], "group")
    assert got == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3], rel=1e-14)
    for scale in ("batch", "batch_centred"):
        (got,) = group_advantages([[1.0, 0.0, 0.0, 0.0]], scale)  # type: ignore[arg-type]
        assert got[0] == pytest.approx(0.75 / 0.5001, rel=1e-14)
    two = [[1.0, 0.0], [8.0, 6.0]]  # raw rewards: variance 44.75 / 3; centred ones: 2.5 / 3
    assert group_advantages(two, "batch")[1][0] == pytest.approx(1 / (math.sqrt(44.75 / 3) + 1e-4), rel=1e-14)
    assert group_advantages(two, "batch_centred")[1][0] == pytest.approx(1 / (math.sqrt(2.5 / 3) + 1e-4), rel=1e-14)


def test_06_equal_rewards_have_the_advantage_0_whatever_their_computed_deviation() -> None:
    """12 float32 rewards of 1.69 have a deviation of 4e-7; over 1e-8 that would be an advantage of 0.9."""
    reward = float(torch.tensor(1.69))
    assert group_advantages([[reward] * 12], "group") == [[0.0] * 12]


def test_07_the_cispo_cap_is_an_absolute_ratio_without_gradient_for_every_token() -> None:
    lp = [[math.log(7.0), math.log(3.0), math.log(0.1)]]
    assert gradient(lp, objective="cispo") == approx([[-5.0, -3.0, -0.1]])
    assert gradient(lp, objective="cispo", ratio_cap=2.0) == approx([[-2.0, -2.0, -0.1]])
    assert gradient(lp, objective="cispo", advantages=[-1.0]) == approx([[5.0, 3.0, 0.1]])
    settings = loss_settings(AlgorithmConfig(loss="cispo"))
    assert settings.ratio_cap == 5.0
    with pytest.raises(ValueError, match=r"ratio_cap: got 0\.28"):
        LossSettings(objective="cispo", ratio_cap=0.28).check()


def test_08_gspo_is_a_mean_over_trained_tokens() -> None:
    """log-ratios log 2 and 0: the geometric mean is sqrt 2, the product 2. Padding and tool tokens are in neither."""
    lp = [[LOG2, 9.0, 0.0, -50.0]]
    mask = [[1, 0, 1, 0]]
    options: dict[str, Any] = {"mask": mask, "epsilon_high": 9.0}
    expected = math.sqrt(2) / 2
    assert gradient(lp, ratio_level="sequence", aggregation="sequence", **options) == approx(
        [[-expected, 0, -expected, 0]]
    )
    assert gradient(lp, ratio_level="sequence_token", aggregation="sequence", **options) == approx(
        [[-expected, 0, -expected, 0]]
    )
    assert PRESETS["gspo"].ratio_level == "sequence"
    assert (PRESETS["gspo"].epsilon_low, PRESETS["gspo"].epsilon_high) == (3e-4, 4e-4)


def test_09_k3_goes_from_the_policy_to_the_reference() -> None:
    """d = reference - policy = log 2: k3 is 2 - log 2 - 1, with the gradient 1 - 2."""
    options: dict[str, Any] = {"advantages": [0.0], "beta": 1.0, "reference_logprobs": [[0.0]]}
    assert gradient([[-LOG2]], old=[[-LOG2]], kl_estimator="k3", **options) == approx([[-1.0]])
    assert gradient([[-LOG2]], old=[[-LOG2]], kl_estimator="k2", **options) == approx([[-LOG2]])


def test_09_the_ratio_of_the_unbiased_kl_has_a_gradient() -> None:
    """r k3 has the gradient r k1 = - r d, also on policy; with a detached ratio it would be r (1 - e^d)."""
    options: dict[str, Any] = {"advantages": [0.0], "beta": 1.0, "kl_estimator": "k3_unbiased"}
    assert gradient([[0.0]], reference_logprobs=[[LOG2]], **options) == approx([[-LOG2]])
    assert gradient([[math.log(3)]], reference_logprobs=[[math.log(6)]], **options) == approx([[-3 * LOG2]])


def test_09_the_kl_is_not_multiplied_by_weights_or_masks() -> None:
    kl = {"beta": 0.5, "reference_logprobs": [[LOG2]]}
    expected = approx([[0.5 * (1 - 2)]])
    zero = {"generator_logprobs": [[5.0]], "importance_correction": "token_mask", "importance_floor": 0.9}
    assert gradient([[0.0]], advantages=[0.0], **kl, **zero) == expected  # type: ignore[arg-type]
    assert gradient([[0.0]], **kl, **zero) == expected  # type: ignore[arg-type]
    dropped = {"generator_logprobs": [[5.0]], "off_policy_threshold": 0.1}
    assert gradient([[0.0]], advantages=[-1.0], **kl, **dropped) == expected  # type: ignore[arg-type]


def test_09_the_unbiased_kl_takes_the_ratio_before_delta() -> None:
    """r = 8, and delta = 4 clips the policy term: what is left is beta r k1 with r = 8."""
    got = gradient(
        [[math.log(8)]], advantages=[-1.0], delta=4.0, beta=0.5, kl_estimator="k3_unbiased", reference_logprobs=[[0.0]]
    )
    assert got == approx([[0.5 * 8 * math.log(8)]])


def corrected(correction: str, **bounds: float) -> list[float]:
    """Weights of three tokens whose old policy is 2 x, 1/2 x, and unknown x the generator."""
    options = {"importance_correction": correction} | bounds
    got = gradient([[0.0] * 3], generator_logprobs=[[-LOG2, LOG2, NAN]], **options)
    return [-x for x in got[0]]


def test_10_importance_weights_are_old_over_generator() -> None:
    assert corrected("token_truncate", importance_cap=9.0) == pytest.approx([2.0, 0.5, 1.0])


def test_10_truncating_clips_and_masking_drops_at_inclusive_bounds() -> None:
    assert corrected("token_truncate", importance_cap=1.5) == pytest.approx([1.5, 0.5, 1.0])
    assert corrected("token_truncate", importance_cap=1.5, importance_floor=0.8) == pytest.approx([1.5, 0.8, 1.0])
    assert corrected("token_mask", importance_cap=1.5) == pytest.approx([0.0, 0.5, 1.0])
    assert corrected("token_mask", importance_cap=9.0, importance_floor=0.8) == pytest.approx([2.0, 0.0, 1.0])
    got = gradient([[0.0]], generator_logprobs=[[0.0]], importance_correction="token_mask", importance_cap=1.0)
    assert got == approx([[-1.0]])


def test_10_a_completions_weight_is_the_product_of_its_tokens() -> None:
    options: dict[str, Any] = {"generator_logprobs": [[-LOG2, -LOG2, NAN]], "importance_cap": 9.0}
    for correction in ("sequence_truncate", "sequence_mask"):
        assert gradient([[0.0] * 3], importance_correction=correction, **options) == approx([[-4.0] * 3])
    capped = options | {"importance_cap": 3.0}
    assert gradient([[0.0] * 3], importance_correction="sequence_truncate", **capped) == approx([[-3.0] * 3])
    assert gradient([[0.0] * 3], importance_correction="sequence_mask", **capped) == approx([[0.0] * 3])


def test_10_the_geometric_mask_looks_at_the_mean_and_truncates_tokens() -> None:
    """Geometric means are 2^(1/3) = 1.26 and 1."""
    options: dict[str, Any] = {
        "generator_logprobs": [[-LOG2, 0.0, NAN], [-LOG2, LOG2, 0.0]],
        "importance_correction": "geometric_mask",
        "importance_cap": 1.5,
        "geometric_floor": 0.9,
    }
    got = gradient([[0.0] * 3] * 2, geometric_cap=1.2, **options)
    assert got == approx([[0.0] * 3, [-0.75, -0.25, -0.5]])
    got = gradient([[0.0] * 3] * 2, geometric_cap=1.3, **options)
    assert got == approx([[-0.75, -0.5, -0.5], [-0.75, -0.25, -0.5]])


def test_10_importance_weights_multiply_the_clipped_objective_and_have_no_gradient() -> None:
    """A token is clipped by its own ratio, whatever its weight; a ratio weighted before the clip would be."""
    options: dict[str, Any] = {"generator_logprobs": [[-LOG2, -LOG2]], "importance_cap": 9.0}
    assert gradient([[math.log(1.5), 0.0]], **options) == approx([[0.0, -2.0]])


def test_11_truncated_completions_stay_in_the_baseline() -> None:
    group = make_group("g", rewards_G=[1.0, 0.0, 5.0], lengths_G=[4, 6, 5], truncated_G=[False, True, False])
    step = plan([group], loss="dr_grpo", mask_truncated_completions=True)
    assert {row.completion: row.advantage for row in rows_of(step)} == {0: -1.0, 2: 3.0}
    assert (step.normalisers[0].rows, step.normalisers[0].tokens) == (3, 9)


def test_12_the_top_entropy_mask_leaves_divisors_and_the_kl_alone() -> None:
    entropies = [[0.1, 0.2, 0.3, 0.4, 0.5]]
    options: dict[str, Any] = {"entropies": entropies, "top_entropy_quantile": 0.4, "aggregation": "token"}
    # the 0.6 quantile of five numbers is 0.34
    assert gradient([[0.0] * 5], **options) == approx([[0, 0, 0, -1 / 5, -1 / 5]])
    kl = {"beta": 0.5, "reference_logprobs": [[LOG2] * 5], "advantages": [0.0]}
    assert gradient([[0.0] * 5], **options, **kl) == approx([[-0.5 / 5] * 5])


def test_12_the_threshold_is_inclusive_and_over_trained_tokens_only() -> None:
    """Of eleven tokens, the 0.3 quantile is the fourth's entropy, and that token stays: 8 of 11."""
    entropies = [[0.1 * k for k in range(11)] + [50.0]]
    mask = [[1] * 11 + [0]]
    got = gradient([[0.0] * 12], mask=mask, entropies=entropies, top_entropy_quantile=0.7, aggregation="token")
    assert got == approx([[0.0] * 3 + [-1 / 11] * 8 + [0.0]])


def test_13_a_reward_that_is_missing_is_void_and_no_zero() -> None:
    assert group_advantages([[1.0, None, 3.0]], "none") == [[-1.0, None, 1.0]]
    with pytest.raises(ValueError, match="1 valid rewards"):
        group_advantages([[1.0, None]], "none")


REWARDS = {"a": [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], "b": [[0.0, 5.0, 0.0, 5.0], [None] * 4]}


def test_13_gdpo_weighs_z_scores_and_whitens_their_sum() -> None:
    def sums(weights: dict[str, float]) -> list[float]:
        z = {name: group_advantages([REWARDS[name][0]], "group")[0] for name in REWARDS}
        first = [weights["a"] * a + weights["b"] * b for a, b in zip(z["a"], z["b"], strict=True)]  # type: ignore[operator]
        second = [weights["a"] * a for a in group_advantages([REWARDS["a"][1]], "group")[0]]  # type: ignore[operator]
        return first + second

    for weights in ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.1}):
        raw = torch.tensor(sums(weights), dtype=torch.float64)
        expected = (raw - raw.mean()) / (raw.std() + 1e-4)
        got = normalize_then_sum(REWARDS, weights)
        assert [a for group in got for a in group] == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-15)


def test_13_a_function_that_applies_to_part_of_a_group_makes_the_rest_void() -> None:
    rewards = {"a": [[1.0, 0.0, 2.0, 9.0]], "b": [[1.0, 0.0, 5.0, None]]}
    got = average_advantages(rewards, lambda numbers: group_advantages(numbers, "none"))
    assert got == [[pytest.approx(-0.5), pytest.approx(-1.5), pytest.approx(2.0), None]]


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant", "sequence_sum", "prompt"])
def test_14_an_empty_micro_batch_has_a_loss_of_0_that_is_connected(aggregation: str) -> None:
    options: dict[str, Any] = {
        "groups": torch.tensor([0, 0]), "max_completion_tokens": 9, "beta": 0.1, "entropy_coef": 0.1,
        "reference_logprobs": [[NAN, 1.0], [0.0, 0.0]], "entropies": [[0.0, NAN], [1.0, 1.0]],
        "top_entropy_quantile": 0.5, "off_policy_threshold": 0.1,
    }  # fmt: skip
    got = gradient([[NAN, 0.0], [INF, 0.0]], mask=[[0, 0], [0, 0]], aggregation=aggregation, **options)
    assert got == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
def test_15_garbage_in_padding_does_not_leak(garbage: float, level: str) -> None:
    options: dict[str, Any] = {"beta": 0.1, "importance_cap": 2.0, "ratio_level": level}
    clean = gradient([[0.1, 0.2]], reference_logprobs=[[0.3, 0.1]], generator_logprobs=[[0.2, 0.2]], **options)
    got = gradient(
        [[0.1, garbage, 0.2]],
        old=[[0.0, garbage, 0.0]],
        mask=[[1, 0, 1]],
        reference_logprobs=[[0.3, garbage, 0.1]],
        generator_logprobs=[[0.2, garbage, 0.2]],
        **options,
    )
    assert got == approx([[clean[0][0], 0.0, clean[0][1]]])


def test_16_off_policy_masking_drops_negative_completions_that_the_policy_has_moved_away_from() -> None:
    """The behaviour policy is the generator, not the old policy; the measure is a mean over trained tokens."""
    options: dict[str, Any] = {"off_policy_threshold": 0.5, "epsilon_low": 0.99, "epsilon_high": 9.0}
    far, near = [-2.0, -0.8], [-0.5, -0.3]
    generator = [[0.0, NAN]] * 4  # mean of generator - policy: 1.0 and 0.25, the unknown token counting 0
    got = gradient([far, far, near, near], advantages=[-1.0, 1.0, -1.0, 1.0], generator_logprobs=generator, **options)
    dropped = [[x == 0 for x in row] for row in got]
    assert dropped == [[True, True], [False, False], [False, False], [False, False]]
    # moved towards, however far: kept
    assert gradient([[3.0]], advantages=[-1.0], generator_logprobs=[[0.0]], **options) != [[0.0]]
    # no advantage counts as not negative
    assert gradient([[0.0]], advantages=[0.0], generator_logprobs=[[9.0]], **options) == approx([[0.0]])
    # without the generator's numbers the old policy stands in
    assert gradient([[-0.8]], advantages=[-1.0], **options) == [[0.0]]
    assert gradient([[-0.8]], old=[[-0.8]], advantages=[-1.0], **options) != [[0.0]]
    assert gradient([[-0.8]], old=[[-0.8]], advantages=[-1.0], generator_logprobs=[[0.0]], **options) == [[0.0]]
    # at the threshold: kept
    assert gradient([[-0.5]], advantages=[-1.0], **options) != [[0.0]]


def test_17_rloo_leaves_one_out_and_multiplies_ratios() -> None:
    assert group_advantages([[3.0, 0.0, 0.0]], "none", baseline="leave_one_out") == [[3.0, -1.5, -1.5]]
    assert group_advantages([[3.0, None, 0.0]], "none", baseline="leave_one_out") == [[3.0, None, -3.0]]
    got = gradient([[LOG2, LOG2]], ratio_level="sequence_sum", aggregation="sequence", epsilon_high=9.0)
    assert got == approx([[-4.0, -4.0]])
    preset = PRESETS["rloo"]
    assert (preset.ratio_level, preset.baseline, preset.scale_rewards) == ("sequence_sum", "leave_one_out", "none")


def test_18_logits_are_divided_by_the_temperature_and_so_is_the_gradient() -> None:
    """Logits log 3 and 0 at temperature 1/2: probabilities 9/10 and 1/10."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    logprobs, entropies = token_logprobs(hidden, weight, torch.tensor([0]), temperature=0.5)
    assert float(logprobs) == pytest.approx(math.log(0.9))
    assert float(entropies) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    (slope,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert float(slope) == pytest.approx((1 - 0.9) * math.log(3) / 0.5)


def test_19_beta_normalization_of_equally_hard_tasks_centres_and_singletons_are_refused() -> None:
    for rewards in ([[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0, 1.0]]):
        got, fit = beta_advantages(rewards)
        assert (fit.alpha, fit.beta) == (1.0, 1.0)
        assert got == group_advantages(rewards, "none")
    with pytest.raises(ValueError, match="1 valid rewards"):
        beta_advantages([[0.0, 1.0], [1.0]])
    # solved tasks reach the cap of the weight, and get exactly 0 all the same
    got, fit = beta_advantages([[1.0, 1.0, 1.0], [0.1, 0.2, 0.3], [0.4, 0.5, 0.3]])
    assert fit.max_weight == 1e6
    assert got[0] == [0.0, 0.0, 0.0]


def test_19_beta_normalization_fits_the_unbiased_moments_of_all_tasks() -> None:
    """Pass rates 1/4, 1/2, 3/4 on two ranks: variance 1/16 with ddof 1, so alpha = beta = 3/2."""
    groups = [
        make_group(f"g{i}", rewards_G=[1.0] * k + [0.0] * (4 - k), lengths_G=[2] * 4) for i, k in enumerate((1, 2, 3))
    ]
    step = plan(groups, ranks=2, loss="beta_normalization")
    assert step.metrics["advantage/beta_fit_alpha"] == pytest.approx(1.5, rel=1e-12)
    assert step.metrics["advantage/beta_fit_variance"] == pytest.approx(1 / 16, rel=1e-12)
    of_first = next(row for row in rows_of(step) if row.group_id == "g0" and row.completion == 0)
    assert of_first.advantage == pytest.approx(0.75 * math.pi / 8 / math.sqrt(3 / 16), rel=1e-12)
    # 3/8, 1/2 and 5/8: variance 1/64, so the fit is a = b = 15/2, and the normaliser's parameters 1 + 5/2
    _, fit = beta_advantages([[1.0] * k + [0.0] * (8 - k) for k in (3, 4, 5)])
    assert (fit.alpha, fit.beta) == pytest.approx((3.5, 3.5), rel=1e-12)


def test_19_beta_normalization_scales_rewards_to_their_bounds() -> None:
    got, _ = beta_advantages([[-1.0, 1.0], [1.0, -1.0]], -1.0, 1.0)
    assert got == [[-0.5, 0.5], [0.5, -0.5]]
    with pytest.raises(ValueError, match="expected them in"):
        beta_advantages([[-1.0, 1.0]])


def test_20_bypass_has_one_ratio_and_no_weight_besides(tmp_path: Path) -> None:
    """policy / generator = 2; a weight of old / generator on top would make it 4."""
    for algorithm in (AlgorithmConfig(old_logprobs="generator"), AlgorithmConfig(loss="scalerl")):
        assert loss_settings(algorithm).importance_correction == "none"
    lp = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    generator = torch.tensor([[-LOG2, NAN]], dtype=torch.float64)
    for correction in ("none", "token_truncate"):
        loss = loss_from_tensors(
            lp, None, torch.ones(1), torch.ones(1, 2), aggregation="sequence_sum", generator_logprobs=generator,
            objective="cispo", importance_correction=correction, importance_cap=9.0,
        )  # fmt: skip
        assert torch.autograd.grad(loss, lp)[0].tolist() == approx([[-2.0, -1.0]])
    recipe = Config()
    both = replace(recipe.algorithm, old_logprobs="generator", importance_correction="token_truncate")
    found = [str(problem) for problem in check(replace(recipe, algorithm=both), tmp_path)]
    assert any("would count twice" in problem for problem in found)
