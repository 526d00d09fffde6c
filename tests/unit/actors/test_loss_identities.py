"""What must be equal, and expectations that can be taken exactly: no reference implementation is asked here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from funicular.actors.advantage import group_advantages
from funicular.actors.advantages.beta import beta_advantages
from funicular.actors.config import AlgorithmConfig
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.kl import kl_terms
from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import KlEstimator, LossSettings
from funicular.actors.losses.token_losses import LossInputs, token_losses
from funicular.actors.step_plan import plan_step
from tests.builders import make_group
from tests.loss_cases import DRIFTS, computed, make_batch

VOCABULARY = 50


def loss_and_gradient(batch: dict[str, Any], **options: Any) -> tuple[float, torch.Tensor]:
    value, gradient, _ = computed(batch, options, torch.float64)
    return value, gradient


def assert_same(a: tuple[float, torch.Tensor], b: tuple[float, torch.Tensor]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-12, abs=1e-15)
    torch.testing.assert_close(a[1], b[1], rtol=1e-12, atol=1e-15)


def test_rloo_is_g_over_g_minus_one_times_dr_grpo() -> None:
    rewards = [[0.3, 1.7, None, -0.4], [1.0, 0.0, 0.0], [2.0, 5.0]]
    rloo = group_advantages(rewards, "none", baseline="leave_one_out")
    dr_grpo = group_advantages(rewards, "none")
    for of_rloo, of_dr_grpo, group in zip(rloo, dr_grpo, rewards, strict=True):
        G = sum(r is not None for r in group)
        for a, b in zip(of_rloo, of_dr_grpo, strict=True):
            assert a == (None if b is None else pytest.approx(G / (G - 1) * b, rel=1e-14))


@pytest.mark.parametrize("drift", DRIFTS.values())
def test_gspo_token_is_gspo_where_a_completion_has_one_advantage(drift: float) -> None:
    batch = make_batch(drift)
    options = {"aggregation": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04}
    gspo = loss_and_gradient(batch, ratio_level="sequence", **options)
    assert_same(loss_and_gradient(batch, ratio_level="sequence_token", **options), gspo)
    per_token = make_batch(drift, per_token=True)
    gspo = loss_and_gradient(per_token, ratio_level="sequence", **options)
    assert not torch.allclose(loss_and_gradient(per_token, ratio_level="sequence_token", **options)[1], gspo[1])


@pytest.mark.parametrize("delta", [1.3, 2.0, 4.0])
def test_delta_is_the_dual_clip(delta: float) -> None:
    """Ye et al. 2020, as verl has it: where A < 0, max( min(r A, clip(r) A), delta A )."""
    batch = make_batch(DRIFTS["far"], per_token=True)
    trained = torch.from_numpy(batch["mask"] == 1)
    lp, old, A = (
        torch.from_numpy(batch[name])[trained].requires_grad_(name == "logprobs")
        for name in ("logprobs", "old_logprobs", "advantages")
    )
    r = torch.exp(lp - old)
    clipped = torch.minimum(r * A, r.clamp(0.8, 1.28) * A)
    dual = torch.where(A < 0, torch.maximum(clipped, delta * A), clipped)
    value = -dual.sum() / lp.numel()
    (gradient,) = torch.autograd.grad(value, lp)
    got = loss_and_gradient(batch, aggregation="token", epsilon_low=0.2, epsilon_high=0.28, delta=delta)
    assert_same((got[0], got[1][trained]), (float(value.detach()), gradient))
    assert ((r > delta) & (A < 0)).any()


def test_bnpo_of_one_row_at_a_time_is_grpo_and_of_the_whole_batch_is_dapo() -> None:
    """TRL's three names: what divides by the tokens of a local batch depends on what is local."""
    batch = make_batch(DRIFTS["near"])
    rows = len(batch["mask"])
    local = [
        loss_and_gradient({k: v[i : i + 1] if isinstance(v, np.ndarray) else v for k, v in batch.items()},
                          aggregation="token")
        for i in range(rows)
    ]  # fmt: skip
    mean = (sum(value for value, _ in local) / rows, torch.cat([gradient for _, gradient in local]) / rows)
    assert_same(mean, loss_and_gradient(batch, aggregation="sequence"))

    groups = [
        make_group(f"g{i}", rewards_G=[0.0, 1.0, 3.0], lengths_G=[2, 5, 11], truncated_G=[False, True, False])
        for i in range(4)
    ]

    def weights(**algorithm: Any) -> set[float]:
        step = plan_step(groups, AlgorithmConfig(mask_truncated_completions=True, **algorithm), 2, 20, 16)
        return {
            row.token_weight
            for rank in step.ranks
            for batch in rank.optimizer_batches
            for micro in batch
            for row in micro.rows
        }

    assert weights(loss="bnpo") == weights(loss="dapo") == {1 / (4 * 13)}


def test_beta_normalization_with_three_halves_is_grpo_up_to_a_constant() -> None:
    """Pass rates 1/4, 1/2 and 3/4 have mean 1/2 and variance 1/16, hence alpha = beta = 3/2 and 1 / f = pi / 8 over
    sqrt(p (1 - p)), the population's deviation of rewards of 0 and 1."""
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    got, fit = beta_advantages(rewards)
    assert (fit.alpha, fit.beta) == pytest.approx((1.5, 1.5), rel=1e-12)
    for group, advantages in zip(rewards, got, strict=True):
        p = sum(group) / 4
        z_G = [(r - p) / math.sqrt(p * (1 - p)) for r in group]
        assert advantages == pytest.approx([math.pi / 8 * z for z in z_G], rel=1e-12)


def test_beta_normalization_with_ones_is_centring() -> None:
    rewards = [[0.0, 1.0], [1.0, 0.0, 0.5]]  # every task equally hard
    got, fit = beta_advantages(rewards)
    assert (fit.alpha, fit.beta) == (1.0, 1.0)
    assert got == group_advantages(rewards, "none")


@pytest.mark.parametrize("objective", ["ppo_clip", "cispo", "sapo", "vespo", "reinforce"])
def test_on_policy_every_gradient_is_reinforce(objective: str) -> None:
    """At r = 1 each has the gradient A: the clip does not bind, the gates and weights are 1."""
    batch = make_batch(DRIFTS["on policy"])
    got = loss_and_gradient(batch, objective=objective, aggregation="token")[1]
    expected = -torch.from_numpy(batch["advantages"][:, None] * (batch["mask"] / batch["mask"].sum()))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_on_policy_the_value_of_a_centred_loss_is_zero_and_no_sign_of_health() -> None:
    batch = make_batch(DRIFTS["on policy"], masks=["11", "11", "11"])
    batch["advantages"] = np.array([1.0, -2.0, 1.0])
    value, gradient = loss_and_gradient(batch, aggregation="sequence")
    assert value == pytest.approx(0, abs=1e-15)
    assert gradient.abs().min() > 0.1


def categorical() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with gradient, and log-probabilities of another policy and of a reference."""
    generator = torch.Generator().manual_seed(3)
    logits, old, reference = (torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), old.log_softmax(0), reference.log_softmax(0)


def expected_gradient(estimator: KlEstimator, *, on_policy: bool, detached_ratio: bool = False) -> torch.Tensor:
    """Sum over all words of the probability that they are sampled times the estimator's gradient by the logits."""
    logits, old, reference = categorical()
    policy = logits.log_softmax(0)
    sampled = policy.detach() if on_policy else old
    ratio = torch.exp(policy - sampled)
    values = kl_terms(policy, reference, ratio=ratio.detach() if detached_ratio else ratio, kl_estimator=estimator)
    return torch.autograd.grad((sampled.exp() * values).sum(), logits)[0]


def exact_gradient(*, reverse: bool) -> torch.Tensor:
    """Of KL(policy || reference) if reverse, else of KL(reference || policy)."""
    logits, _, reference = categorical()
    policy = logits.log_softmax(0)
    first, second = (policy, reference) if reverse else (reference, policy)
    return torch.autograd.grad((first.exp() * (first - second)).sum(), logits)[0]


def test_k1_as_a_loss_has_no_expected_gradient() -> None:
    assert expected_gradient("k1", on_policy=True).abs().max() < 1e-15
    with pytest.raises(ValueError, match="kl_estimator: got k1"):
        LossSettings(beta=0.1, kl_estimator="k1").check()


def test_k1_and_k3_estimate_the_kl_to_the_reference() -> None:
    logits, _, reference = categorical()
    policy = logits.detach().log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3", "k3_unbiased"):
        values = kl_terms(policy, reference, ratio=torch.ones(VOCABULARY), kl_estimator=estimator)  # type: ignore[arg-type]
        assert float((policy.exp() * values).sum()) == pytest.approx(float(exact), rel=1e-12), estimator


def test_k2_has_the_gradient_of_the_reverse_kl_on_policy() -> None:
    error = expected_gradient("k2", on_policy=True) - exact_gradient(reverse=True)
    assert error.abs().max() < 1e-15
    assert (expected_gradient("k2", on_policy=False) - exact_gradient(reverse=True)).abs().max() > 1e-2


def test_k3_has_the_gradient_of_the_forward_kl_on_policy() -> None:
    error = expected_gradient("k3", on_policy=True) - exact_gradient(reverse=False)
    assert error.abs().max() < 1e-15
    assert (expected_gradient("k3", on_policy=True) - exact_gradient(reverse=True)).abs().max() > 1e-2


@pytest.mark.parametrize("on_policy", [True, False])
def test_k3_times_the_ratio_has_the_gradient_of_the_reverse_kl_on_and_off_policy(on_policy: bool) -> None:
    error = expected_gradient("k3_unbiased", on_policy=on_policy) - exact_gradient(reverse=True)
    assert error.abs().max() < 1e-15
    detached = expected_gradient("k3_unbiased", on_policy=on_policy, detached_ratio=True)
    assert (detached - exact_gradient(reverse=True)).abs().max() > 1e-2


def test_the_corrected_kl_of_the_loss_itself_is_unbiased_off_policy() -> None:
    """The same through the loss: the ratio that multiplies k3 is the policy's own, with gradient."""
    logits, old, reference = categorical()
    losses = token_losses(
        LossInputs(
            logprobs=logits.log_softmax(0),
            old_logprobs=old,
            advantages=torch.zeros(VOCABULARY),
            segments=Segments.of_lengths(torch.ones(VOCABULARY, dtype=torch.int64)),
            reference_logprobs=reference,
        ),
        LossSettings(beta=1.0, kl_estimator="k3_unbiased"),
    ).losses
    (gradient,) = torch.autograd.grad((old.exp() * losses).sum(), logits)
    assert (gradient - exact_gradient(reverse=True)).abs().max() < 1e-15


def test_importance_weights_make_the_policy_gradient_unbiased() -> None:
    """Words drawn by another policy, each weighted by policy over generator: the policy's own gradient."""
    logits, generator, _ = categorical()
    rewards = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)
    policy = logits.log_softmax(0)
    (exact,) = torch.autograd.grad(-(policy.exp() * rewards).sum(), logits, retain_graph=True)
    for correction in ("token_truncate", "sequence_truncate", "token_mask", "sequence_mask"):
        losses = token_losses(
            LossInputs(
                logprobs=policy,
                old_logprobs=policy.detach(),
                advantages=rewards,
                segments=Segments.of_lengths(torch.ones(VOCABULARY, dtype=torch.int64)),
                generator_logprobs=generator,
            ),
            LossSettings(objective="reinforce", importance_correction=correction, importance_cap=1e9),  # type: ignore[arg-type]
        ).losses
        (gradient,) = torch.autograd.grad((generator.exp() * losses).sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-14)


def test_clipping_one_token_leaves_the_others_gradient() -> None:
    lp = torch.tensor([[math.log(2.0), 0.0, math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    loss = loss_from_tensors(
        lp, torch.zeros(1, 3, dtype=torch.float64), torch.ones(1), torch.ones(1, 3), aggregation="token"
    )
    (gradient,) = torch.autograd.grad(loss, lp)
    assert gradient.tolist()[0] == pytest.approx([0.0, -1 / 3, -0.5 / 3])
