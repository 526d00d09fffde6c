"""Groups whose prompt is computed once: real DeepSpeed ranks against plain PyTorch, and against rows of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.losses.presets import kl_in_reward
from funicular.actors.packing import SharePrompts
from funicular.actors.step_plan import plan_scoring, plan_step
from tests import plain_policy
from tests.learner_batches import LIMIT, batch, distance, load_plain
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1, share_prefix="on")
UPDATES = [
    (AlgorithmConfig(loss="grpo"), 40),
    (AlgorithmConfig(loss="bnpo", mask_truncated_completions=True), 10_000),
    (AlgorithmConfig(loss="gspo", epsilon_low=0.01, epsilon_high=0.01, optimizer_batches=2), 60),
]


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("untied"), tied=False, architecture="qwen2"))


@pytest.mark.parametrize(("world", "zero_stage"), [(1, 0), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_the_update_is_that_of_one_process_a_row_at_a_time(
    hosts: dict[int, Hosts], model: str, untied: str, world: int, zero_stage: int
) -> None:
    groups, payloads = batch()
    config = replace(SGD, ranks=world, zero_stage=zero_stage)
    folder = model if zero_stage % 2 else untied
    for algorithm, tokens in UPDATES:
        hosts[world].begin(config, algorithm, folder)
        assert hosts[world].run(_shares) == [True] * world
        before, *_ = hosts[world].pack()
        cut = plan_step(groups, algorithm, world, tokens, LIMIT, packed=True, share_prompts="on")
        assert cut.metrics["perf/pass_tokens"] < cut.metrics["perf/pass_tokens_unshared"]
        hosts[world].step(cut, payloads)
        after, *_ = hosts[world].pack()
        plain = load_plain(folder, before)
        plain_policy.update(plain, groups, payloads, algorithm, max_completion_tokens=LIMIT, temperature=TEMPERATURE)
        expected = {name: p.detach() for name, p in plain.named_parameters()}
        assert distance(after, expected) / distance(before, expected) < 1e-5, (algorithm, tokens)


def _shares(learner: Any) -> bool:
    return bool(learner._shares_prompts)


SETTINGS: list[tuple[AlgorithmConfig, dict[str, Any]]] = [
    (AlgorithmConfig(top_entropy_quantile=0.4, entropy_coef=0.02, num_iterations=2), {"zero_stage": 3}),
    (
        AlgorithmConfig(beta=0.1, optimizer_batches=2),
        {"zero_stage": 3, "gradient_checkpointing": True, "offload_activations": True, "learning_rate": 0.05},
    ),
    (AlgorithmConfig(loss="reinforce_pp", beta=0.1, kl_in="token_reward", kl_estimator="k1"), {"learning_rate": 0.05}),
    (AlgorithmConfig(beta=0.1), {"zero_stage": 3, "lora_rank": 4, "learning_rate": 0.5}),
    (AlgorithmConfig(), {"zero_stage": 2, "sequence_parallel": 2}),
]


@pytest.mark.parametrize(("algorithm", "options"), SETTINGS)
def test_nothing_else_changes(
    hosts: dict[int, Hosts], model: str, algorithm: AlgorithmConfig, options: dict[str, Any]
) -> None:
    """Weights and metrics after two steps on two ranks, with all that is computed before an update or besides it."""
    found = []
    for share_prompts in ("off", "on"):
        config = replace(SGD, ranks=2, share_prefix=share_prompts, **options)
        hosts[2].begin(config, algorithm, model)
        for _ in range(2):
            metrics = step(hosts[2], algorithm, config.ranks // config.sequence_parallel, share_prompts)
        del metrics["perf/learner_memory_gib"]
        tensors, manifest, _ = hosts[2].pack()
        found.append((metrics, tensors, manifest.canary))
    (expected_metrics, expected, canary), (got_metrics, got, got_canary) = found
    assert got_metrics == pytest.approx(expected_metrics, rel=2e-3, abs=2e-5)
    assert distance(got, expected) / distance(dict(load_plain(model).named_parameters()), expected) < 1e-5
    assert got_canary.logprobs == pytest.approx(canary.logprobs, abs=1e-4)


def step(hosts: Hosts, algorithm: AlgorithmConfig, ranks: int, share_prompts: SharePrompts) -> dict[str, float]:
    groups, payloads = batch()
    cut = (groups, algorithm, ranks, 60, LIMIT)
    passes: dict[str, Any] = {"packed": True, "share_prompts": share_prompts}
    copies = 2 // ranks
    if not kl_in_reward(algorithm):
        return hosts.step(plan_step(*cut, **passes).shared(copies), payloads)
    scoring = plan_scoring(*cut, **passes).shared(copies)
    return hosts.score_and_step(scoring, payloads, lambda kl: plan_step(*cut, **passes, kl=kl).shared(copies))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_teacher_in_the_ranks_shares_prompts_too(
    hosts: dict[int, Hosts], model: str, tmp_path: Any, zero_stage: int
) -> None:
    folder = str(make_tiny_model(tmp_path, architecture="qwen2", seed=3))
    distillation = DistillationConfig(teacher=folder, loss="jsd", reward_coef=0.5)
    groups, payloads = batch()
    found = []
    for share_prompts in ("off", "on"):
        config = replace(SGD, ranks=2, zero_stage=zero_stage, learning_rate=0.1, share_prefix=share_prompts)
        hosts[2].begin(config, AlgorithmConfig(), model, distillation=distillation, teacher_folder=folder)
        cut = (groups, AlgorithmConfig(), 2, 60, LIMIT)
        plan = plan_step(*cut, packed=True, share_prompts=share_prompts, distillation=distillation)
        metrics = hosts[2].step(plan, payloads)
        del metrics["perf/learner_memory_gib"]
        found.append((metrics, hosts[2].pack()[0]))
    (expected_metrics, expected), (metrics, tensors) = found
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-5)
    initial = dict(load_plain(model).named_parameters())
    assert distance(tensors, expected) / distance(initial, expected) < 1e-5


@pytest.mark.parametrize("options", [{"compute_dtype": "bfloat16"}, {"dtype": "bfloat16", "compute_dtype": "bfloat16"}])
def test_bfloat16_goes_the_same_way(hosts: dict[int, Hosts], model: str, options: dict[str, Any]) -> None:
    groups, payloads = batch()
    hosts[2].begin(replace(SGD, ranks=2, zero_stage=1, **options), AlgorithmConfig(), model)
    before, *_ = hosts[2].pack()
    hosts[2].step(plan_step(groups, AlgorithmConfig(), 2, 60, LIMIT, packed=True, share_prompts="on"), payloads)
    after, *_ = hosts[2].pack()
    plain = load_plain(model, before)
    plain_policy.update(
        plain, groups, payloads, AlgorithmConfig(), max_completion_tokens=LIMIT, temperature=TEMPERATURE
    )
    expected = {name: p.detach() for name, p in plain.named_parameters()}
    assert distance(after, expected) / distance(before, expected) < 0.05
