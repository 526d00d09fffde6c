from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from funicular.actors.aggregation import Normaliser
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import LossSettings
from funicular.actors.losses.token_losses import LossInputs, token_losses

AGGREGATIONS = ["sequence", "token", "constant"]


def terms(logprob: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Loss and gradient of one token whose old log-probability is 0, so that its ratio is exp(logprob)."""
    lp = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    inputs = {name: options.pop(name) for name in ("reference_logprobs", "generator_logprobs") if name in options}
    loss = token_losses(
        LossInputs(
            logprobs=lp,
            old_logprobs=torch.zeros(1, dtype=torch.float64),
            advantages=torch.tensor([advantage]),
            segments=Segments.of_lengths(torch.tensor([1])),
            **inputs,
        ),
        LossSettings(**({"epsilon_low": 0.2, "epsilon_high": 0.3} | options)),
    ).losses
    loss.sum().backward()
    assert lp.grad is not None
    return float(loss.detach()), float(lp.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),  # below the upper clip
        (1.5, 2.0, -2.6, 0.0),  # clipped at 1.3
        (0.5, 2.0, -1.0, -1.0),  # the lower clip does not bind for a positive advantage
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
        (1.5, -2.0, 3.0, 3.0),  # the upper clip does not bind for a negative advantage
    ],
)
def test_the_clip_binds_only_where_it_takes_away_the_incentive(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    assert terms(math.log(ratio), advantage) == pytest.approx((loss, gradient), rel=1e-12)


def test_delta_caps_the_ratio_of_negative_advantages() -> None:
    assert terms(math.log(9.0), -1.0) == pytest.approx((9.0, 9.0))
    assert terms(math.log(9.0), -1.0, delta=4.0) == pytest.approx((4.0, 0.0))
    assert terms(math.log(3.0), -1.0, delta=4.0) == pytest.approx((3.0, 3.0))


def test_a_delta_inside_the_upper_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta: got 1.2, expected above 1 \+ epsilon_high"):
        LossSettings(delta=1.2).check()


def test_importance_weights_multiply_the_policy_term_and_not_the_kl() -> None:
    halved = {
        "generator_logprobs": torch.tensor([math.log(2)], dtype=torch.float64),
        "importance_correction": "token_truncate",
        "importance_cap": 2.0,
    }
    reference = torch.tensor([0.7], dtype=torch.float64)
    _, plain = terms(0.0, 2.0)
    _, kl_alone = terms(0.0, 0.0, reference_logprobs=reference, beta=0.1)
    _, both = terms(0.0, 2.0, reference_logprobs=reference, beta=0.1, **halved)
    assert both == pytest.approx(0.5 * plain + kl_alone, rel=1e-12)


def test_k3_has_the_gradient_one_minus_exp_d() -> None:
    d = 0.7 - 0.1
    loss, gradient = terms(0.1, 0.0, reference_logprobs=torch.tensor([0.7], dtype=torch.float64), beta=1.0)
    assert loss == pytest.approx(math.exp(d) - d - 1)
    assert gradient == pytest.approx(1 - math.exp(d))


def test_unbiased_k3_has_the_gradient_of_the_reverse_kl() -> None:
    """Exact expectation over a categorical, off policy: sum over old probabilities of the estimator's gradient."""
    torch.manual_seed(0)
    old, reference = (torch.randn(40, dtype=torch.float64).log_softmax(0) for _ in range(2))
    logits = torch.randn(40, dtype=torch.float64, requires_grad=True)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def estimated(kind: str) -> torch.Tensor:
        losses = token_losses(
            LossInputs(
                logprobs=logits.log_softmax(0),
                old_logprobs=old,
                advantages=torch.zeros(40, dtype=torch.float64),
                segments=Segments.of_lengths(torch.ones(40, dtype=torch.int64)),
                reference_logprobs=reference,
            ),
            LossSettings(beta=1.0, kl_estimator=kind),  # type: ignore[arg-type]
        ).losses
        return gradient((old.exp() * losses).sum())

    policy = logits.log_softmax(0)
    exact = gradient((policy.exp() * (policy - reference)).sum())
    torch.testing.assert_close(estimated("k3_unbiased"), exact, rtol=1e-10, atol=1e-12)
    assert (estimated("k3") - exact).abs().max() > 1e-2


def test_beta_needs_a_reference() -> None:
    with pytest.raises(ValueError, match=r"beta: got 0.1 without reference_logprobs"):
        terms(0.0, 1.0, beta=0.1)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence", [1 / 8, 1 / 24, 0.0]),
        ("token", [1 / 20, 1 / 20, 0.0]),
        ("constant", [1 / 40, 1 / 40, 0.0]),
        ("sequence_sum", [1 / 4, 1 / 4, 0.0]),
        ("prompt", [1 / 36, 1 / 36, 0.0]),
    ],
)
def test_each_aggregation_has_its_weight_and_empty_rows_stay_rows(aggregation: Any, expected: list[float]) -> None:
    normaliser = Normaliser(aggregation=aggregation, rows=4, tokens=20, groups=3, max_completion_tokens=10)
    got = [normaliser.token_weight(n, group_tokens=12) for n in (2, 6, 0)]
    assert got == pytest.approx(expected, rel=1e-12)


def make_batch(rows: int = 6, width: int = 7, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.tensor([7, 3, 1, 5, 0, 4])[:rows]
    old = normal(rows, width) - 2
    return {
        "logprobs": old + 0.3 * normal(rows, width),
        "old_logprobs": old,
        "advantages": normal(rows),
        "mask": (torch.arange(width)[None] < lengths[:, None]).long(),
        "reference_logprobs": old + 0.2 * normal(rows, width),
        "generator_logprobs": old + 0.4 * normal(rows, width),
    }


def loss_and_gradient(batch: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    lp = batch["logprobs"].clone().requires_grad_()
    options = {"beta": 0.1, "importance_cap": 1.2, "max_completion_tokens": 9} | options
    loss = loss_from_tensors(**(batch | {"logprobs": lp}), **options)
    (gradient,) = torch.autograd.grad(loss, lp)
    return loss.detach(), gradient


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cut", [(6,), (3, 3), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1)])
def test_parts_of_a_batch_add_up_to_the_whole(aggregation: str, cut: tuple[int, ...]) -> None:
    batch = make_batch()
    loss, gradient = loss_and_gradient(batch, aggregation=aggregation)
    tokens = int(batch["mask"].sum())
    parts = []
    start = 0
    for rows in cut:
        part = {name: value[start : start + rows] for name, value in batch.items()}
        parts.append(loss_and_gradient(part, aggregation=aggregation, rows=6, tokens=tokens))
        start += rows
    torch.testing.assert_close(sum(p[0] for p in parts), loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_is_never_read(aggregation: str) -> None:
    batch = make_batch()
    loss, gradient = loss_and_gradient(batch, aggregation=aggregation)
    poisoned = {
        name: torch.where(batch["mask"] == 0, torch.tensor(float("nan"), dtype=torch.float64), value)
        if name.endswith("logprobs")
        else value
        for name, value in batch.items()
    }
    poisoned_loss, poisoned_gradient = loss_and_gradient(poisoned, aggregation=aggregation)
    assert torch.equal(poisoned_loss, loss)
    assert torch.equal(poisoned_gradient, gradient)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padded_width_does_not_matter(aggregation: str) -> None:
    batch = make_batch()
    wide = {name: torch.nn.functional.pad(value, (0, 4)) if value.ndim == 2 else value for name, value in batch.items()}
    expected = loss_and_gradient(batch, aggregation=aggregation)[0]
    torch.testing.assert_close(loss_and_gradient(wide, aggregation=aggregation)[0], expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_a_connected_zero(aggregation: str) -> None:
    batch = make_batch()
    loss, gradient = loss_and_gradient(batch | {"mask": torch.zeros(6, 7)}, aggregation=aggregation)
    assert loss == 0
    assert not gradient.any()


def test_on_policy_the_loss_is_the_reinforce_gradient() -> None:
    batch = make_batch() | {"reference_logprobs": None, "generator_logprobs": None}
    batch["old_logprobs"] = batch["logprobs"]
    _, gradient = loss_and_gradient(batch, aggregation="token", beta=0.0, importance_cap=None)
    expected = -batch["advantages"][:, None] * batch["mask"] / batch["mask"].sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_importance_weights_are_truncated_and_detached() -> None:
    """Generator twice as likely: weight 1/2; half as likely: 2, cut to 1.5."""
    lp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    loss = loss_from_tensors(
        lp,
        lp.detach(),
        torch.tensor([1.0]),
        torch.ones(1, 2),
        aggregation="token",
        generator_logprobs=torch.tensor([[-1.0 + math.log(2), -1.0 - math.log(2)]]),
        importance_cap=1.5,
    )
    (gradient,) = torch.autograd.grad(loss, lp)
    assert gradient.tolist()[0] == pytest.approx([-0.25, -0.75])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "constant", "max_completion_tokens": None}, "max_completion_tokens"),
        ({"aggregation": "token", "generator_logprobs": None}, "token_truncate without generator"),
        ({"aggregation": "token", "mask": torch.ones(6, 8)}, r"mask: got shape \(6, 8\)"),
    ],
)
def test_missing_or_misshapen_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_from_tensors(**(make_batch() | {"importance_cap": 1.2} | options))
