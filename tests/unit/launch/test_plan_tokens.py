from __future__ import annotations

import pytest

from funicular.actors.config import AlgorithmConfig, GeneratorConfig, LearnerConfig
from funicular.launch.config import Config
from funicular.launch.plan_tokens import tokens_of_a_group, trained_tokens_of_a_pass


def config(learner: LearnerConfig, *, group_size: int = 8, groups: int = 4) -> Config:
    return Config(
        algorithm=AlgorithmConfig(group_size=group_size, groups_per_step=groups),
        generator=GeneratorConfig(max_prompt_tokens=1024, max_completion_tokens=128),
        learner=learner,
    )


def test_completions_of_a_pass_share_their_prompt() -> None:
    found = tokens_of_a_group(config(LearnerConfig(micro_batch_tokens=4096)), 1024, 128)
    assert (found.shared, found.unshared) == (1024 + 8 * 128, 8 * (1024 + 128))


def test_a_prompt_stands_in_each_pass_that_a_group_is_cut_into() -> None:
    found = tokens_of_a_group(config(LearnerConfig(micro_batch_tokens=1024 + 4 * 128)), 1024, 128)
    assert found.shared == 2 * (1024 + 4 * 128)


@pytest.mark.parametrize("learner", [LearnerConfig(share_prefix="off"), LearnerConfig(packing=False)])
def test_nothing_is_shared_where_the_recipe_says_so(learner: LearnerConfig) -> None:
    found = tokens_of_a_group(config(learner), 1024, 128)
    assert found.shared == found.unshared


def test_trained_tokens_of_a_pass_are_those_of_the_groups_that_fill_it() -> None:
    assert trained_tokens_of_a_pass(config(LearnerConfig(micro_batch_tokens=4096))) == 2 * 8 * 128
    assert trained_tokens_of_a_pass(config(LearnerConfig(micro_batch_tokens=100_000))) == 4 * 8 * 128
    assert trained_tokens_of_a_pass(config(LearnerConfig(micro_batch_tokens=4096, share_prefix="off"))) == 3 * 128


def test_ranks_that_share_a_pass_have_the_room_of_all() -> None:
    two = LearnerConfig(micro_batch_tokens=2048, ranks=2, sequence_parallel=2)
    assert trained_tokens_of_a_pass(config(two)) == 2 * 8 * 128
