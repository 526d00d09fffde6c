"""What an engine is asked for: nothing that hides the distribution, and seeds that differ where completions must."""

from __future__ import annotations

from typing import Any

from funicular.actors.config import GeneratorConfig
from funicular.actors.sampling import sampling_parameters, seed_of
from funicular.actors.types import GenerationRequest
from funicular.rewards.types import Task


def request(seed: int | None = None, form: Any = None) -> GenerationRequest:
    task = Task(task_id="t", prompt="p", answer=None, verifier="none", structured_output=form)
    return GenerationRequest(group_id="g", task=task, count=2, temperature=0.7, seed=seed)


def test_the_whole_distribution_is_sampled_at_the_temperature() -> None:
    asked = sampling_parameters(GeneratorConfig(max_completion_tokens=9), request(), 0)
    assert (asked.temperature, asked.max_tokens, asked.min_tokens) == (0.7, 9, 0)
    assert (asked.top_p, asked.top_k, asked.min_p) == (1.0, 0, 0.0)
    assert (asked.presence_penalty, asked.frequency_penalty, asked.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (asked.seed, asked.structured_outputs, asked.repetition_detection, asked.detokenize) == (
        None,
        None,
        None,
        False,
    )


def test_what_ends_a_completion_is_handed_on_and_texts_are_looked_for() -> None:
    config = GeneratorConfig(stop=["</a>"], stop_token_ids=[7], stop_repetition_count=3, stop_repetition_tokens=8)
    asked = sampling_parameters(config, request(), 0)
    assert (asked.stop, asked.stop_token_ids, asked.detokenize) == (["</a>"], [7], True)
    assert (asked.repetition_detection.max_pattern_size, asked.repetition_detection.min_count) == (8, 3)


def test_a_form_is_handed_on_under_vllms_name() -> None:
    assert sampling_parameters(GeneratorConfig(), request(form={"regex": "a"}), 0).structured_outputs.regex == "a"
    schema = {"type": "object"}
    assert sampling_parameters(GeneratorConfig(), request(form={"json_schema": schema}), 0).structured_outputs.json == (
        schema
    )


def test_members_of_a_group_have_seeds_of_their_own_that_depend_on_the_groups_alone() -> None:
    seeds = [sampling_parameters(GeneratorConfig(), request(seed), i).seed for seed in (1, 2) for i in range(2)]
    assert len(set(seeds)) == 4
    assert seeds[0] == sampling_parameters(GeneratorConfig(max_sequences=1), request(1), 0).seed
    assert 0 <= seed_of("a", 1) < 2**63
    assert seed_of(1, 11) != seed_of(11, 1)
