"""The batch of a certificate: sampled completions, with rewards and mishaps so that all that is counted occurs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from funicular.actors.config import AlgorithmConfig
from funicular.actors.losses.presets import preset_of
from funicular.actors.types import GenerationRecord, GroupPayload, ScoredGroup
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Status, Task, Verdict

VOID, WITHOUT_VARIANCE = 1, 2
"""Indices of the groups with mishaps. The first, and those from 3 on, are ordinary."""
UNSCORED, UNMEASURED = 0, 1
"""Indices of the void completions in their group."""


def draw_limits(groups: int, completions: int, most: int, seed: int) -> list[list[int]]:
    """Most tokens of each completion: different ones, so that rows differ in length; one of each group has all."""
    rng = np.random.default_rng([seed, 1])
    limits = rng.integers(max(1, most // 4), most + 1, (groups, completions))
    limits[:, -1] = most
    return [[int(limit) for limit in of_group] for of_group in limits]


def draw_verdicts(
    groups: int, completions: int, algorithm: AlgorithmConfig, rewards: RewardConfig, seed: int
) -> list[list[Verdict]]:
    """Rewards by chance: each function's uniform in its range, the reward their mean; all equal in one group."""
    rng = np.random.default_rng([seed, 2])
    low, high = 0.0, 1.0
    if preset_of(algorithm).baseline == "beta":
        low, high = algorithm.beta_reward_min, algorithm.beta_reward_max
    drawn = []
    for group in range(groups):
        values = low + (high - low) * rng.random((completions, len(rewards.functions)))
        if group == WITHOUT_VARIANCE:
            values[:] = values[0]
        drawn.append(
            [
                Verdict(
                    reward=float(of_row.mean()),
                    breakdown=dict(zip(rewards.functions, map(float, of_row), strict=True)),
                    status=Status.PASSED,
                )
                for of_row in values
            ]
        )
    return drawn


def make_groups(
    tasks: Sequence[Task],
    sampled: Sequence[tuple[GenerationRecord, GroupPayload]],
    verdicts_PG: Sequence[Sequence[Verdict]],
) -> tuple[list[ScoredGroup], dict[str, GroupPayload]]:
    """Groups without references to payloads, and the payloads. Two completions of one group become void: one has no
    reward, the other a generator log-probability that is NaN."""
    groups, payloads = [], {}
    for index, (task, (record, payload), verdicts_G) in enumerate(zip(tasks, sampled, verdicts_PG, strict=True)):
        if index == VOID:
            unscored = replace(verdicts_G[UNSCORED], reward=None, status=Status.INFRA_ERROR)
            verdicts_G = [unscored if i == UNSCORED else verdict for i, verdict in enumerate(verdicts_G)]
            logprobs = np.array(payload.generator_logprobs)
            logprobs[payload.completion(UNMEASURED)] = math.nan
            payload = replace(payload, generator_logprobs=logprobs)
            record = replace(record, finite_G=tuple(i != UNMEASURED and ok for i, ok in enumerate(record.finite_G)))
        groups.append(
            ScoredGroup(
                group_id=record.group_id,
                slot=index,
                task=task,
                generation=record,
                verdicts_G=tuple(verdicts_G),
                payload=None,
                scoring_seconds=0.0,
            )
        )
        payloads[record.group_id] = payload
    return groups, payloads


def describe(groups: Sequence[ScoredGroup], payloads: Mapping[str, GroupPayload]) -> str:
    """What is in the batch, in one line."""
    valid = [(group, i) for group in groups for i, ok in enumerate(group.valid_G) if ok]
    completions = sum(len(group.verdicts_G) for group in groups)
    truncated = sum(group.generation.truncated_G[i] for group, i in valid)
    flat = sum(len(set(group.rewards_G) - {None}) == 1 for group in groups)
    lengths = [group.generation.lengths_G[i] for group, i in valid]
    prompts = [len(payload.prompt_ids) for payload in payloads.values()]
    return (
        f"{len(groups)} groups, {completions} completions: {completions - len(valid)} void, {truncated} truncated, "
        f"{flat} groups without variance; prompts of {min(prompts)} to {max(prompts)} tokens, "
        f"completions of {min(lengths)} to {max(lengths)}"
    )
