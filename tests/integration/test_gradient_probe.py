"""The gradient of real DeepSpeed ranks against the plain float64 one, loss by loss. Minutes, most of them imports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.gradient_errors import GradientErrors
from funicular.actors.gradient_probe import ProbeSettings, probe_hosts
from funicular.actors.plain_gradient import OptimizerBatch
from funicular.actors.plain_policy import PlainPolicy
from funicular.actors.probed_learners import ProbedLearners
from funicular.launch import certificate_batch
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Task
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

TEMPERATURE, LIMIT, SEED = 0.9, 12, 0
LEARNER = LearnerConfig(ranks=2, zero_stage=2, micro_batch_tokens=60, cpu_threads=1)
REWARDS = RewardConfig(functions={"correctness": 1.0, "closeness": 0.5})

LOSSES = [
    AlgorithmConfig(),
    AlgorithmConfig(loss="dr_grpo", mask_truncated_completions=True),
    AlgorithmConfig(loss="gspo", importance_correction="sequence_mask"),
    AlgorithmConfig(loss="scalerl"),
    AlgorithmConfig(loss="sapo", importance_correction="token_mask", importance_cap=1.1, importance_floor=0.9),
    AlgorithmConfig(loss="vespo"),
    AlgorithmConfig(loss="gmpo", old_logprobs="generator"),
    AlgorithmConfig(loss="dapo", beta=0.5, kl_estimator="k3_unbiased", off_policy_threshold=0.01),
    AlgorithmConfig(loss="rloo", beta=0.5, kl_in="reward"),
    AlgorithmConfig(loss="reinforce_pp", beta=0.5, kl_in="token_reward"),
    AlgorithmConfig(loss="beta_normalization", several_rewards="average_advantages"),
    AlgorithmConfig(loss="opo", several_rewards="normalize_then_sum"),
    AlgorithmConfig(loss="cispo", top_entropy_quantile=0.5, entropy_coef=0.1),
    AlgorithmConfig(aggregation="prompt", entropy_coef=0.1, whiten_advantages="completions"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), architecture="qwen2", tied=False))


@pytest.fixture(scope="module")
def plain(model: str) -> PlainPolicy:
    return PlainPolicy(model, chat_template="auto", temperature=TEMPERATURE, seed=SEED)


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> list[Any]:
    return probe_hosts(LEARNER.ranks)


def make_batch(plain: PlainPolicy, algorithm: AlgorithmConfig) -> OptimizerBatch:
    texts = ["one two", "Count the letters of the word", "Sort the numbers: 31, 7", "If a is 3", "twelve thirteen"]
    tasks = [Task(task_id=text, prompt=text, answer="1", verifier="exact_number") for text in texts]
    named = [(f"group-{i}", ids) for i, ids in enumerate(plain.render(tasks))]
    sampled = plain.sample(named, certificate_batch.draw_limits(len(tasks), 4, LIMIT, SEED))
    verdicts = certificate_batch.draw_verdicts(len(tasks), 4, algorithm, REWARDS, SEED)
    groups, payloads = certificate_batch.make_groups(tasks, sampled, verdicts)
    return OptimizerBatch(
        groups=tuple(groups),
        payloads=payloads,
        rewards=REWARDS,
        algorithm=algorithm,
        temperature=TEMPERATURE,
        max_completion_tokens=LIMIT,
    )


async def errors(
    plain: PlainPolicy, hosts: list[Any], model: str, batch: OptimizerBatch, learner: LearnerConfig, folder: Path
) -> GradientErrors:
    found, _ = await probed(plain, hosts, model, batch, learner, folder)
    return found


async def probed(
    plain: PlainPolicy, hosts: list[Any], model: str, batch: OptimizerBatch, learner: LearnerConfig, folder: Path
) -> tuple[GradientErrors, ProbedLearners]:
    file = str(folder / "gradient.safetensors")
    assert plain.gradient(batch, learner, file) > 0
    settings = ProbeSettings(temperature=TEMPERATURE, model_folder=model, seed=SEED, expected=file)
    learners = ProbedLearners(
        hosts, learner, batch.algorithm, settings, max_completion_tokens=LIMIT, rewards=batch.rewards
    )
    groups = [replace(group, payload=ray.put(batch.payloads[group.group_id])) for group in batch.groups]
    return await learners.errors(groups), learners


@pytest.mark.parametrize("algorithm", LOSSES, ids=lambda algorithm: algorithm.loss)
async def test_the_learner_computes_the_gradient_of_every_loss(
    algorithm: AlgorithmConfig, plain: PlainPolicy, hosts: list[Any], model: str, tmp_path: Path
) -> None:
    found = await errors(plain, hosts, model, make_batch(plain, algorithm), LEARNER, tmp_path)
    assert found.relative < 2e-5, found.worst  # float32 against float64: rloo's is 1.3e-5 on a processor with AMX


@pytest.mark.parametrize("zero_stage", [0, 3])
async def test_adapters_and_the_policy_under_them(
    zero_stage: int, plain: PlainPolicy, hosts: list[Any], model: str, tmp_path: Path
) -> None:
    learner = replace(LEARNER, zero_stage=zero_stage, lora_rank=4)
    batch = make_batch(plain, AlgorithmConfig(beta=0.5))
    found = await errors(plain, hosts, model, batch, learner, tmp_path)
    assert found.relative < 1e-5, found.worst
    assert all(".lora_" in name for name in found.parameters)
    assert all(error.expected > 0 for error in found.parameters.values())


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
async def test_the_group_says_whether_prompts_were_shared(architecture: Any, hosts: list[Any], tmp_path: Path) -> None:
    model = str(make_tiny_model(tmp_path / "model", architecture=architecture))
    plain = PlainPolicy(model, chat_template="auto", temperature=TEMPERATURE, seed=SEED)
    learner = replace(LEARNER, share_prefix="on", micro_batch_tokens=10_000)
    found, learners = await probed(plain, hosts, model, make_batch(plain, AlgorithmConfig()), learner, tmp_path)
    assert found.relative < 2e-5, found.worst
    shares = architecture == "llama"  # mistral's attention has a sliding window
    assert (learners.can_share, learners.shared) == (shares, shares)
