"""Each preset makes a tiny model better at something, on a real DeepSpeed rank. Plain transformers samples here: what
generators do is tested elsewhere. About two minutes, all presets together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.losses.presets import PRESETS, kl_in_reward
from funicular.actors.step_plan import plan_scoring, plan_step
from funicular.actors.types import GroupPayload, ScoredGroup
from tests.builders import make_group
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

TASKS, GROUP, LENGTH, STEPS = 6, 8, 10, 14
FULL = LearnerConfig(learning_rate=4e-3, adam_beta2=0.95, cpu_threads=1, micro_batch_tokens=2048)
LORA = replace(FULL, learning_rate=3e-2, lora_rank=8)
PROMPTS = np.random.default_rng(5).integers(3, 300, (TASKS, 6), dtype=np.int32)


@pytest.fixture(scope="module")
def host(local_ray: None) -> Hosts:
    return Hosts(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@torch.no_grad()
def sample(model: Any, step: int) -> tuple[list[ScoredGroup], dict[str, GroupPayload], float]:
    """One batch; the reward is the part of a completion's tokens with an even id."""
    torch.manual_seed(step)
    prompts = torch.from_numpy(np.repeat(PROMPTS, GROUP, axis=0).astype(np.int64))
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_new_tokens=LENGTH,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[:, prompts.shape[1] :]
    logits = torch.stack(out.logits, 1).float() / TEMPERATURE
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    rewards = (tokens % 2 == 0).double().mean(1)
    groups, payloads = [], {}
    for index in range(TASKS):
        part = slice(index * GROUP, (index + 1) * GROUP)
        group_id = f"g{step}-{index}"
        groups.append(
            make_group(group_id, rewards_G=rewards[part].tolist(), lengths_G=[LENGTH] * GROUP, prompt_tokens=6)
        )
        payloads[group_id] = GroupPayload(
            group_id=group_id,
            prompt_ids=PROMPTS[index],
            token_ids=tokens[part].reshape(-1).numpy().astype(np.int32),
            offsets=np.arange(GROUP + 1, dtype=np.int64) * LENGTH,
            generator_logprobs=logprobs[part].reshape(-1).numpy().astype(np.float32),
            token_versions=np.zeros(GROUP * LENGTH, dtype=np.int32),
            texts=("",) * GROUP,
        )
    return groups, payloads, float(rewards.mean())


def gain(host: Hosts, folder: str, algorithm: AlgorithmConfig, learner: LearnerConfig) -> float:
    """Mean reward of the last three batches minus that of the first."""
    from transformers import AutoModelForCausalLM

    host.begin(learner, algorithm, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cut = (algorithm, 1, learner.micro_batch_tokens, LENGTH)
    means = []
    for step in range(STEPS):
        weights, *_ = host.pack()
        model.load_state_dict(weights, strict=False)  # the head is tied
        groups, payloads, mean = sample(model, step)
        means.append(mean)
        if kl_in_reward(algorithm):
            host.score_and_step(
                plan_scoring(groups, *cut), payloads, lambda kl, groups=groups: plan_step(groups, *cut, kl=kl)
            )
        else:
            host.step(plan_step(groups, *cut), payloads)
    return float(np.mean(means[-3:])) - means[0]


@pytest.mark.parametrize("loss", sorted(PRESETS))
def test_every_preset_improves_the_reward(host: Hosts, folder: str, loss: str) -> None:
    algorithm = AlgorithmConfig(loss=loss, optimizer_batches=2)  # type: ignore[arg-type]
    assert gain(host, folder, algorithm, FULL) > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "grpo"},
        {"loss": "gspo"},
        {"loss": "cispo"},
        {"loss": "beta_normalization"},
        {"loss": "rloo", "beta": 0.01, "kl_in": "reward"},
        {"loss": "reinforce_pp", "beta": 0.01, "kl_in": "token_reward"},
    ],
)
def test_so_do_adapters_and_kl_terms_in_rewards(host: Hosts, folder: str, options: dict[str, Any]) -> None:
    assert gain(host, folder, AlgorithmConfig(**options), LORA) > 0.1
