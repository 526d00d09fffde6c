"""The certificate's batch holds what is easily miscounted; its cuts are all different."""

from __future__ import annotations

import math

import numpy as np

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.types import GenerationRecord, GroupPayload
from funicular.launch import certificate_batch
from funicular.launch.certificate_cuts import MOST_RANKS, cuts
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Task
from tests.builders import make_group, make_payload

REWARDS = RewardConfig(functions={"correctness": 2.0, "closeness": 0.5})


def sampled(lengths_PG: list[list[int]]) -> list[tuple[GenerationRecord, GroupPayload]]:
    found = []
    for index, lengths_G in enumerate(lengths_PG):
        name = f"group-{index}"
        truncated = [length == 12 for length in lengths_G]
        group = make_group(name, rewards_G=[0.0] * len(lengths_G), lengths_G=lengths_G, truncated_G=truncated)
        found.append((group.generation, make_payload(name, lengths_G=lengths_G)))
    return found


def test_the_batch_has_void_and_truncated_completions_and_a_group_without_variance() -> None:
    limits = certificate_batch.draw_limits(4, 4, 12, seed=0)
    verdicts = certificate_batch.draw_verdicts(4, 4, AlgorithmConfig(), REWARDS, seed=0)
    tasks = [Task(task_id=str(i), prompt="p", answer="a", verifier="math") for i in range(4)]
    groups, payloads = certificate_batch.make_groups(tasks, sampled(limits), verdicts)
    assert [sum(group.valid_G) for group in groups] == [4, 2, 4, 4]
    assert groups[1].verdicts_G[0].reward is None
    assert groups[1].generation.finite_G == (True, False, True, True)
    part = payloads["group-1"].completion(1)
    assert np.isnan(payloads["group-1"].generator_logprobs[part]).all()
    assert np.isfinite(payloads["group-1"].generator_logprobs[: part.start]).all()
    assert [len(set(group.rewards_G)) for group in groups] == [4, 3, 1, 4]
    assert all(group.generation.truncated_G[-1] for group in groups)
    assert len({length for group in groups for length in group.generation.lengths_G}) > 4
    assert certificate_batch.describe(groups, payloads).startswith(
        "4 groups, 16 completions: 2 void, 5 truncated, 1 groups without variance; prompts of 5 to 5 tokens"
    )


def test_the_same_seed_draws_the_same_batch() -> None:
    assert certificate_batch.draw_limits(5, 6, 24, seed=3) == certificate_batch.draw_limits(5, 6, 24, seed=3)
    assert certificate_batch.draw_limits(5, 6, 24, seed=3) != certificate_batch.draw_limits(5, 6, 24, seed=4)
    first, second = (certificate_batch.draw_verdicts(4, 4, AlgorithmConfig(), REWARDS, seed=3) for _ in range(2))
    assert first == second


def test_rewards_lie_where_the_beta_normaliser_expects_them() -> None:
    algorithm = AlgorithmConfig(loss="beta_normalization", beta_reward_min=-1.0, beta_reward_max=3.0)
    verdicts = certificate_batch.draw_verdicts(50, 4, algorithm, REWARDS, seed=0)
    values = [verdict.reward for of_group in verdicts for verdict in of_group]
    assert all(-1 <= value <= 3 for value in values if value is not None)
    assert min(value for value in values if value is not None) < 0
    assert set(verdicts[0][0].breakdown) == {"correctness", "closeness"}


def test_the_cuts_differ_and_cover_all_stages() -> None:
    recipe = LearnerConfig(ranks=4, zero_stage=3, dtype="bfloat16", compute_dtype="bfloat16", lora_rank=8)
    found = cuts(recipe)
    assert len({(cut.learner, cut.small_tiles) for cut in found}) == len(found)
    assert len({cut.name for cut in found}) == len(found)
    assert {cut.learner.zero_stage for cut in found if cut.learner.ranks == MOST_RANKS} == {0, 1, 2, 3}
    assert {cut.learner.gradient_checkpointing for cut in found} == {True, False}
    assert all(cut.learner.lora_rank == 8 for cut in found)
    assert [cut.name for cut in found if not cut.judged] == ["recipe's learner on 2 ranks, own types"]
    for cut in found:
        assert not cut.judged or cut.learner.dtype == cut.learner.compute_dtype == "float32"


def test_a_float32_recipe_has_no_row_for_information() -> None:
    assert all(cut.judged for cut in cuts(LearnerConfig()))
    assert not math.isnan(len(cuts(LearnerConfig())))
