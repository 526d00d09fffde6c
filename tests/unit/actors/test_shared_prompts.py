"""A group's prompt computed once gives what every row with its own prompt gives: another cut, and nothing else."""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors import lora
from funicular.actors.collate import collate
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.learner_step import LearnerStep
from funicular.actors.losses.presets import kl_in_reward, loss_settings, needs_reference
from funicular.actors.packing import SharePrompts
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing, score_batch
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.step_plan import plan_scoring, plan_step
from funicular.actors.step_sums import StepSums
from funicular.actors.types import GroupPayload, KlScore, ScoredGroup
from tests.averaging_engine import FakeAveragingEngine
from tests.builders import make_group, make_payload
from tests.random_models import random_model
from tests.unit.actors.test_law_one import CHOICES, agreed_cut

CPU = torch.device("cpu")
LIMIT = 30
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {},
    "tied llama": {"tie_word_embeddings": True},
}
FURTHER_MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "granite": {},
    "cohere": {},
    "olmo2": {},
    "phi3": {},
    "glm4": {},
    "smollm3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
"""The other kinds that the documentation names."""
MULTIMODAL_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
EVERY_ROW = AlgorithmConfig(beta=0.1)
"""Plans rows of every advantage."""

Groups = tuple[list[ScoredGroup], dict[str, GroupPayload]]


def make_groups(shapes: list[tuple[int, list[int]]]) -> Groups:
    """Of a prompt's tokens and its completions'; every third completion has the group's best reward."""
    groups, payloads = [], {}
    for index, (prompt, lengths) in enumerate(shapes):
        name = f"g{index}"
        groups.append(
            make_group(
                name,
                rewards_G=[(1 - 0.1 * index) * float(i % 3 == 0) for i in range(len(lengths))],
                lengths_G=lengths,
                prompt_tokens=prompt,
                truncated_G=[length == LIMIT for length in lengths],
            )
        )
        payloads[name] = make_payload(name, lengths_G=lengths, prompt_tokens=prompt, vocabulary=60, seed=index)
    return groups, payloads


SHAPES = make_groups(
    [(11, [30, 4, 1, 9, 17]), (1, [8, 30, 3]), (25, [2, 1, 1, 0, 5, 2, 1, 3]), (4, [6, 6]), (20, [5, 0])]
)
"""Prompts longer than completions and the reverse, of one token, with empty completions, with a single one."""


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    size = st.one_of(st.integers(0, 4), st.integers(5, LIMIT))
    group = st.tuples(st.integers(1, 40), st.lists(size, min_size=1, max_size=16))
    return draw(st.lists(group, min_size=1, max_size=4).filter(lambda groups: any(sum(g) for _, g in groups)))


@functools.cache
def policy_of(name: str) -> PolicyModel:
    return make_policy(name)


def make_policy(name: str) -> PolicyModel:
    model = random_model(name.split()[-1], **(MODELS | FURTHER_MODELS)[name])
    policy = PolicyModel(model, compute_dtype=torch.float32, packing=True, share_prompts=True)
    assert policy.shares_prompts
    return policy


def gradients(policy: PolicyModel) -> list[torch.Tensor]:
    """Those that there are; the parameters have none afterwards."""
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    return found


def assert_equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    whole = float(torch.stack([b.norm() for b in expected]).norm())
    error = float(torch.stack([(a - b).norm() for a, b in zip(got, expected, strict=True)]).norm())
    assert whole > 0
    assert error <= 1e-5 * whole


def scored(
    policy: PolicyModel, made: Groups, share_prompts: SharePrompts, micro_batch_tokens: int
) -> tuple[dict[tuple[str, int], torch.Tensor], list[torch.Tensor]]:
    """(2, tokens) log-probabilities and entropies of each row, and the gradient of a loss of them."""
    groups, payloads = made
    # As for scores: an advantage needs two completions, and a group may have one here.
    plan = plan_scoring(groups, EVERY_ROW, 1, micro_batch_tokens, LIMIT, packed=True, share_prompts=share_prompts)
    found = {}
    for micro in plan.ranks[0].optimizer_batches[0]:
        batch = collate(micro, payloads, CPU, packed=True)
        rows = torch.stack(score_batch(policy, batch, 0.8)).split(batch.segments.lengths.tolist(), 1)
        sum(row[0].mean().exp() + (row[0] * row[1]).sum() for row in rows).backward()
        found |= {name: row.detach() for name, row in zip(batch.rows, rows, strict=True)}
    return found, gradients(policy)


def assert_sharing_changes_nothing(policy: PolicyModel, made: Groups, micro_batch_tokens: int) -> None:
    values, got = scored(policy, made, "on", micro_batch_tokens)
    expected_values, expected = scored(policy, made, "off", 10_000)
    assert values.keys() == expected_values.keys()
    for row, value in values.items():
        torch.testing.assert_close(value, expected_values[row], rtol=1e-5, atol=1e-5)
    assert_equal(got, expected)


@settings(deadline=None, max_examples=60)
@given(shapes(), st.sampled_from(list(MODELS)), st.sampled_from([1, 50, 90, 10_000]))
def test_values_and_gradients_are_those_of_rows_with_their_own_prompts(
    drawn: list[tuple[int, list[int]]], name: str, micro_batch_tokens: int
) -> None:
    assert_sharing_changes_nothing(policy_of(name), make_groups(drawn), micro_batch_tokens)


@pytest.mark.parametrize("name", FURTHER_MODELS)
def test_models_of_other_kinds_do_the_same(name: str) -> None:
    policy = make_policy(name)
    for micro_batch_tokens in (60, 10_000):
        assert_sharing_changes_nothing(policy, SHAPES, micro_batch_tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("adapter", [None, "lora", "dora"])
def test_checkpointed_layers_and_adapters_do_the_same(name: str, adapter: Any) -> None:
    policy = make_policy(name)
    if adapter:
        lora.add_adapters(policy.causal_lm, LearnerConfig(lora_rank=3, adapter=adapter), 0, with_reference=False)
        for parameter in policy.parameters():
            if parameter.requires_grad and not parameter.any():  # else half of the gradient would be 0
                parameter.data.normal_(std=0.1)
    enable_gradient_checkpointing(policy.causal_lm)
    for micro_batch_tokens in (60, 10_000):
        assert_sharing_changes_nothing(policy, SHAPES, micro_batch_tokens)


class PolicyEngine(FakeAveragingEngine):
    """One rank's engine around a real policy."""

    def __init__(self, policy: PolicyModel, *, ranks: int = 1, accumulation_steps: int = 1) -> None:
        super().__init__(ranks, accumulation_steps)
        self._policy = policy

    def __call__(self, *arguments: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        return self._policy(*arguments, **options)

    def scoring(self) -> nullcontext[PolicyEngine]:
        """As a reference policy."""
        return nullcontext(self)


def sampled_by(policy: PolicyModel) -> Groups:
    """Completions whose generator was almost the policy, so that no correction masks all of them."""
    groups, payloads = SHAPES
    values, _ = scored(policy, SHAPES, "off", 10_000)
    rng = np.random.default_rng(0)
    for name, payload in payloads.items():
        rows = [values[name, index][0].numpy() for index in range(len(payload.texts)) if (name, index) in values]
        logprobs = np.concatenate(rows)
        noisy = logprobs + rng.normal(0, 0.05, len(logprobs)).astype(np.float32)
        payloads = payloads | {name: replace(payload, generator_logprobs=noisy)}
    return groups, payloads


def step_gradients(
    policy: PolicyModel,
    reference: PolicyModel,
    algorithm: AlgorithmConfig,
    share_prompts: SharePrompts,
    ranks: int,
    micro_batch_tokens: int,
) -> list[list[torch.Tensor]]:
    """Of each optimizer batch, as the ranks' own steps compute it, one rank after the other."""
    groups, payloads = sampled_by(policy)
    steps: list[Any] = [
        LearnerStep(
            PolicyEngine(policy, ranks=ranks, accumulation_steps=2),
            algorithm,
            payloads,
            {},
            distillation=RankDistillation(DistillationConfig(), None),
            reference=PolicyEngine(reference) if needs_reference(algorithm) else None,  # type: ignore[arg-type]
            entropy_coef=algorithm.entropy_coef,
            temperature=0.8,
            device=CPU,
            ranks=ranks,
            packed=True,
        )
        for _ in range(ranks)
    ]
    cut = (groups, algorithm, ranks, micro_batch_tokens, LIMIT)
    passes: dict[str, Any] = {"packed": True, "share_prompts": share_prompts}
    scores: dict[tuple[str, int], KlScore] = {}
    scoring = plan_scoring(*cut, **passes) if kl_in_reward(algorithm) else plan_step(*cut, **passes)
    for step, of_rank in zip(steps, scoring.ranks, strict=True):
        scores |= step.score(of_rank)
    plan = plan_step(*cut, **passes, kl=scores)
    found = []
    for index, normaliser in enumerate(plan.normalisers):
        entropy_cut = agreed_cut(steps, plan, index, algorithm, normaliser.tokens)
        for step, of_rank in zip(steps, plan.ranks, strict=True):
            for micro in of_rank.optimizer_batches[index]:
                step._micro_batch(step._collate(micro), entropy_cut, StepSums(loss_settings(algorithm), CPU))
        found.append(gradients(policy))
    return found


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: " ".join(map(str, choices.values())))
def test_every_loss_has_the_same_gradient(choices: dict[str, Any]) -> None:
    algorithm = AlgorithmConfig(**choices, mask_truncated_completions=True, optimizer_batches=2)
    policy, reference = policy_of("qwen2"), policy_of("tied llama")
    expected = step_gradients(policy, reference, algorithm, "off", 1, 10_000)
    for ranks, micro_batch_tokens in [(1, 10_000), (2, 45)]:
        got = step_gradients(policy, reference, algorithm, "on", ranks, micro_batch_tokens)
        assert len(got) == len(expected) == 2
        for a, b in zip(got, expected, strict=True):
            assert_equal(a, b)


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("mistral", {"sliding_window": 6}, "sliding windows"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "soft-capped scores"),
        ("llama", {"rope_parameters": MULTIMODAL_ROTARY}, "multimodal rotary embedding"),
    ],
)
def test_a_model_that_cannot_share_is_found_and_says_why_once(
    architecture: str, options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(architecture, **options)
    with caplog.at_level(logging.WARNING, "funicular"):
        policy = PolicyModel(model, compute_dtype=torch.float32, packing=True, share_prompts=True)
    assert policy.packed
    assert not policy.shares_prompts
    said = [record.message for record in caplog.records if record.name.startswith("funicular")]
    assert [reason in message and "computes every row's own prompt" in message for message in said] == [True]
    scored(policy, SHAPES, "off", 60)  # it still runs over rows


def test_a_layer_that_looks_back_by_places_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """It mixes neighbours but where a row begins anew: rows are right, and completions behind others are wrong."""
    model = random_model("llama")
    seen: list[torch.Tensor] = []
    model.model.rotary_emb.register_forward_hook(
        lambda module, inputs, options, output: seen.append(options["position_ids"]), with_kwargs=True
    )

    def mix(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.1 * output.roll(1, 1) * (seen[-1] > 0)[..., None]

    model.model.norm.register_forward_hook(mix)
    policy = PolicyModel(model, compute_dtype=torch.float32, packing=True, share_prompts=True)
    assert policy.packed
    assert not policy.shares_prompts
    assert "rows that share their prompt differ from others" in caplog.text
