"""On-policy distillation by sampled tokens: the expected gradient is that of the reverse KL, whatever is mixed in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from funicular.actors.collate import collate
from funicular.actors.config import AlgorithmConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.losses.reverse_kl import reverse_kl_advantages
from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import LossSettings
from funicular.actors.losses.token_losses import LossInputs, token_losses
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.step_plan import StepPlan, plan_step
from funicular.actors.types import GroupPayload, ScoredGroup, TeacherPayload, TeacherRecord
from tests.builders import make_group, make_payload

WORDS = 7


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student, with gradient, and log-probabilities of a teacher; float64."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(WORDS, generator=generator, dtype=torch.float64).requires_grad_()
    return student, torch.randn(WORDS, generator=generator, dtype=torch.float64).log_softmax(0)


def test_it_is_minus_the_log_ratio_and_has_no_gradient() -> None:
    old = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-1.5, -0.25], dtype=torch.float64)
    advantages = reverse_kl_advantages(old, teacher, 0.5)
    assert advantages.tolist() == [-0.25, 0.875]
    assert not advantages.requires_grad


@pytest.mark.parametrize("objective", ["ppo_clip", "reinforce", "cispo"])
def test_the_expected_gradient_on_policy_is_the_reverse_kls(objective: str) -> None:
    """Every token with its probability, in place of a sample."""
    student, teacher = distributions(3)
    logprobs = student.log_softmax(0)
    terms = token_losses(
        LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            advantages=reverse_kl_advantages(logprobs, teacher, 2.0),
            segments=Segments.of_lengths(torch.tensor([WORDS])),
        ),
        LossSettings(objective=objective),  # type: ignore[arg-type]
    )
    (terms.losses * logprobs.detach().exp()).sum().backward()
    assert student.grad is not None

    def kl(logits: torch.Tensor) -> float:
        p = logits.log_softmax(0)
        return float((p.exp() * (p - teacher)).sum())

    for word in range(WORDS):
        step = torch.zeros(WORDS, dtype=torch.float64)
        step[word] = 1e-5
        with torch.no_grad():
            slope = (kl(student + step) - kl(student - step)) / 2e-5
        assert float(student.grad[word]) == pytest.approx(2.0 * slope, rel=1e-6, abs=1e-9)


def taught(name: str, rewards: list[float | None], finite: tuple[bool, ...]) -> ScoredGroup:
    group = make_group(name, rewards_G=rewards, lengths_G=[3, 5])
    record = TeacherRecord(group_id=name, teacher="teacher-0", finite_G=finite, seconds=1.0)
    return replace(group, teaching=record, teacher_payload="scores")


def plan(groups: list[ScoredGroup], **options: float) -> StepPlan:
    distillation = DistillationConfig(teacher="t", **options)  # type: ignore[arg-type]
    return plan_step(groups, AlgorithmConfig(group_size=2), 1, 64, 16, distillation=distillation)


def advantages(step: StepPlan) -> dict[tuple[str, int], float]:
    batches = step.ranks[0].optimizer_batches
    return {(row.group_id, row.completion): row.advantage for b in batches for micro in b for row in micro.rows}


def test_alone_the_teacher_teaches_every_row_whatever_the_rewards() -> None:
    groups = [taught("a", [1.0, 0.0], (True, True)), taught("b", [1.0, 1.0], (True, True))]
    step = plan(groups)
    assert advantages(step) == {("a", 0): 0.0, ("a", 1): 0.0, ("b", 0): 0.0, ("b", 1): 0.0}
    assert not any(name.startswith("advantage") for name in step.metrics)


def test_mixed_the_advantages_of_rewards_are_multiplied() -> None:
    groups = [taught("a", [1.0, 0.0], (True, True)), taught("b", [1.0, 1.0], (True, True))]
    full, half = plan(groups, reward_coef=1.0), plan(groups, reward_coef=0.5)
    assert advantages(full)[("a", 0)] == pytest.approx(0.5 / (0.5**0.5 + 1e-4))
    assert {row: 0.5 * a for row, a in advantages(full).items()} == pytest.approx(advantages(half))
    assert full.metrics == half.metrics != {}


def test_a_completion_for_which_the_teacher_gave_no_number_is_void() -> None:
    group = taught("a", [1.0, 0.0], (True, False))
    assert group.valid_G == (True, False)
    assert group.rewards_G == (1.0, None)


def test_collated_rows_carry_what_the_teacher_said_of_their_tokens() -> None:
    groups = [taught("a", [1.0, 0.0], (True, True))]
    payload: GroupPayload = make_payload("a", lengths_G=[3, 5])
    said = TeacherPayload(group_id="a", logprobs=payload.generator_logprobs - 1)
    (micro,) = plan(groups).ranks[0].optimizer_batches[0]
    batch = collate(micro, {"a": payload}, torch.device("cpu"), teacher_payloads={"a": said})
    distillation = RankDistillation(DistillationConfig(teacher="t", coef=3.0), None)
    term = distillation.sampled(batch, batch.generator_logprobs)
    assert term is not None
    torch.testing.assert_close(term.losses, torch.full((8,), 3.0))
    torch.testing.assert_close(term.kl, torch.full((8,), 1.0))
    unscored = collate(micro, {"a": payload}, torch.device("cpu"))
    assert distillation.sampled(unscored, batch.generator_logprobs) is None
