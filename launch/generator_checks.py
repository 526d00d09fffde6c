"""Rules between the keys of `generator`, and between them and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from funicular.actors.losses.presets import loss_settings, preset_of
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.engine_options import refusal
from funicular.launch.problems import Problem
from funicular.launch.yaml_nodes import show_value

_CORRECTED = ("token_truncate", "token_mask")
"""Corrections that weigh each token by itself: none lets one forced token take its whole completion with it."""


def generator_problems(config: Config) -> Iterator[Problem]:
    """What makes a run impossible, or its log-probabilities wrong."""
    yield from _endings(config)
    yield from _restricted_choice(config)
    for name, value in config.generator.engine_options.items():
        if found := refusal(name):
            expected, nearest = found
            key = f"generator.engine_options.{name}"
            yield Problem(key=key, value=show_value(value), expected=expected, nearest=nearest)


def doubtful_generators(config: Config) -> Iterator[Problem]:
    """What is possible, but probably not meant."""
    slots = (config.max_staleness + 1) * config.algorithm.groups_per_step
    if config.generator.count > slots and config.data.completion_column is None:
        expected = f"a group is made by one generator, and only {slots} groups are under way at a time"
        nearest = "Raise algorithm.groups_per_step or max_staleness, or lower it"
        related = ("algorithm.groups_per_step", "max_staleness")
        yield problem_at(config, "generator.count", expected, nearest, *related)
    if config.generator.engine_options.get("kv_cache_dtype", "auto") != "auto":
        expected = "keys and values are rounded, so log-probabilities differ more from the learner's"
        yield problem_at(config, "generator.engine_options", expected, "Watch mismatch/logprob_abs_mean")


def _endings(config: Config) -> Iterator[Problem]:
    generator = config.generator
    if generator.min_completion_tokens > generator.max_completion_tokens:
        expected = f"expected at most max_completion_tokens = {generator.max_completion_tokens}"
        yield problem_at(config, "generator.min_completion_tokens", expected, "", "generator.max_completion_tokens")
    if not all(generator.stop):
        yield problem_at(config, "generator.stop", "an empty text would end every completion at once")
    if any(token < 0 for token in generator.stop_token_ids):
        yield problem_at(config, "generator.stop_token_ids", "expected token ids, which are at least 0")
    if generator.stop_repetition_count == 1:
        expected = "expected at least 2: every passage stands there once; 0 turns it off"
        yield problem_at(config, "generator.stop_repetition_count", expected)


def _restricted_choice(config: Config) -> Iterator[Problem]:
    """Where some tokens may not be sampled, log-probabilities are of what is left, and each token's weight must say so.

    The weight is the probability that the policy gives to all that was allowed: at most 1, and small where the
    restriction decided instead of the policy.
    """
    algorithm, preset = config.algorithm, preset_of(config.algorithm)
    if loss_settings(algorithm).importance_correction in _CORRECTED and preset.old_logprobs == "learner":
        return
    expected = (
        "it rules out some of the policy's tokens, which each token's importance weight must account for; expected "
        f"importance_correction {' or '.join(_CORRECTED)}, and old_logprobs=learner"
    )
    related = ("algorithm.importance_correction", "algorithm.old_logprobs", "algorithm.loss")
    if config.generator.min_completion_tokens:
        yield problem_at(config, "generator.min_completion_tokens", expected, "0 rules nothing out", *related)
    if config.data.structured_output_column is not None:
        yield problem_at(config, "data.structured_output_column", expected, "null rules nothing out", *related)
