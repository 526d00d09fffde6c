"""Ranks that share the tokens of each pass: DeepSpeed against plain PyTorch, and against ranks that share nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.losses.presets import kl_in_reward
from funicular.actors.step_plan import StepPlan, plan_scoring, plan_step
from tests import plain_policy
from tests.learner_batches import LIMIT, batch, distance, load_plain, short_rows
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
GSPO = AlgorithmConfig(loss="gspo", epsilon_low=0.01, epsilon_high=0.01, optimizer_batches=2)
ONE_EACH = AlgorithmConfig(loss="dr_grpo")
UPDATES = [
    (AlgorithmConfig(loss="grpo"), 60),
    (ONE_EACH, 1),
    (AlgorithmConfig(loss="bnpo", mask_truncated_completions=True), 10_000),
    (GSPO, 35),
]


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {world: Hosts(world) for world in (1, 2, 4)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four heads and two key heads, so that four ranks need copies of key heads."""
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def shared(groups: Any, algorithm: AlgorithmConfig, world: int, size: int, tokens: int) -> StepPlan:
    return plan_step(groups, algorithm, world // size, tokens, LIMIT, packed=True).shared(size)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("world", "size"), [(2, 2), (4, 2), (4, 4)])
def test_the_update_is_that_of_one_process_at_every_zero_stage(
    hosts: dict[int, Hosts], model: str, world: int, size: int, zero_stage: int
) -> None:
    """No factor but the number of ranks: rows uneven, fewer tokens than ranks, and ranks of a group without rows."""
    config = replace(SGD, ranks=world, sequence_parallel=size, zero_stage=zero_stage)
    hosts[world].begin(config, AlgorithmConfig(), model)
    before, *_ = hosts[world].pack()
    for (groups, payloads), updates in [(short_rows(), [(ONE_EACH, 1)]), (batch(), UPDATES)]:
        for algorithm, tokens in updates:
            if algorithm is GSPO:  # the others differ in weights alone, which the plan has
                hosts[world].begin(config, algorithm, model)
                before, *_ = hosts[world].pack()
            hosts[world].step(shared(groups, algorithm, world, size, tokens), payloads)
            after, *_ = hosts[world].pack()
            plain = load_plain(model, before)
            plain_policy.update(
                plain, groups, payloads, algorithm, max_completion_tokens=LIMIT, temperature=TEMPERATURE
            )
            expected = {name: p.detach() for name, p in plain.named_parameters()}
            assert distance(after, expected) / distance(before, expected) < 1e-5, (algorithm, tokens)
            before = after


SETTINGS: list[tuple[AlgorithmConfig, dict[str, Any]]] = [
    (AlgorithmConfig(top_entropy_quantile=0.4, entropy_coef=0.02, num_iterations=2), {"zero_stage": 3}),
    (
        AlgorithmConfig(beta=0.1, optimizer_batches=2),
        {"zero_stage": 3, "gradient_checkpointing": True, "offload_activations": True, "learning_rate": 0.05},
    ),
    (AlgorithmConfig(loss="reinforce_pp", beta=0.1, kl_in="token_reward", kl_estimator="k1"), {"learning_rate": 0.05}),
    (AlgorithmConfig(beta=0.1), {"zero_stage": 2, "lora_rank": 4, "optimizer": "adamw", "learning_rate": 1e-2}),
    (AlgorithmConfig(), {"optimizer": "adamw", "learning_rate": 1e-3, "max_grad_norm": 0.05, "zero_stage": 0}),
]


@pytest.mark.parametrize(("algorithm", "options"), SETTINGS)
def test_sharing_changes_nothing_else(
    hosts: dict[int, Hosts], model: str, algorithm: AlgorithmConfig, options: dict[str, Any]
) -> None:
    """Weights, norms, metrics and the canary after two steps, with all that is counted or agreed on over ranks."""
    groups, payloads = batch()
    found = []
    for world, size in [(1, 1), (2, 1), (4, 2)]:
        config = replace(SGD, ranks=world, sequence_parallel=size, **options)
        hosts[world].begin(config, algorithm, model)
        for _ in range(2):
            metrics = step(hosts[world], groups, payloads, algorithm, world, size)
        del metrics["perf/learner_memory_gib"]
        tensors, manifest, _ = hosts[world].pack()
        found.append((metrics, tensors, manifest.canary))
    (expected_metrics, expected, canary), *others = found
    initial = dict(load_plain(model).named_parameters())
    moved = distance(initial, expected)
    allowed = 1e-5 if options.get("optimizer") != "adamw" else 2e-3
    for metrics, tensors, other_canary in others:
        assert metrics == pytest.approx(expected_metrics, rel=2e-3, abs=2e-5)
        assert distance(tensors, expected) / moved < allowed
        assert other_canary.token_ids == canary.token_ids
        assert other_canary.logprobs == pytest.approx(canary.logprobs, abs=1e-4)


def step(
    hosts: Hosts, groups: Any, payloads: Any, algorithm: AlgorithmConfig, world: int, size: int
) -> dict[str, float]:
    cut = (groups, algorithm, world // size, 60, LIMIT)
    if not kl_in_reward(algorithm):
        return hosts.step(plan_step(*cut, packed=True).shared(size), payloads)
    scoring = plan_scoring(*cut, packed=True).shared(size)
    return hosts.score_and_step(scoring, payloads, lambda kl: plan_step(*cut, packed=True, kl=kl).shared(size))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_teacher_in_the_ranks_shares_the_passes(
    hosts: dict[int, Hosts], model: str, tmp_path: Any, zero_stage: int
) -> None:
    folder = str(make_tiny_model(tmp_path, architecture="qwen2", seed=3))
    distillation = DistillationConfig(teacher=folder, loss="jsd", reward_coef=0.5)
    groups, payloads = batch()
    found = []
    for world, size in [(1, 1), (4, 2)]:
        config = replace(SGD, ranks=world, sequence_parallel=size, zero_stage=zero_stage, learning_rate=0.1)
        hosts[world].begin(config, AlgorithmConfig(), model, distillation=distillation, teacher_folder=folder)
        cut = plan_step(groups, AlgorithmConfig(), world // size, 60, LIMIT, packed=True, distillation=distillation)
        metrics = hosts[world].step(cut.shared(size), payloads)
        del metrics["perf/learner_memory_gib"]
        found.append((metrics, hosts[world].pack()[0]))
    (expected_metrics, expected), (metrics, tensors) = found
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-5)
    initial = dict(load_plain(model).named_parameters())
    assert distance(tensors, expected) / distance(initial, expected) < 1e-5


def test_bfloat16_and_a_tied_head_in_float32_go_the_same_way(hosts: dict[int, Hosts], model: str) -> None:
    groups, payloads = batch()
    config = replace(SGD, ranks=4, sequence_parallel=2, zero_stage=3, dtype="bfloat16", compute_dtype="bfloat16")
    hosts[4].begin(replace(config, head_dtype="float32"), AlgorithmConfig(), model)
    before, *_ = hosts[4].pack()
    hosts[4].step(shared(groups, AlgorithmConfig(), 4, 2, 60), payloads)
    after, *_ = hosts[4].pack()
    plain = load_plain(model, before)
    plain_policy.update(
        plain, groups, payloads, AlgorithmConfig(), max_completion_tokens=LIMIT, temperature=TEMPERATURE
    )
    expected = {name: p.detach() for name, p in plain.named_parameters()}
    assert distance(after, expected) / distance(before, expected) < 0.05
