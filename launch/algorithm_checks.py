"""Rules between the keys of `algorithm`, and between them and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from funicular.actors.losses.presets import loss_settings, preset_of
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem

_SEQUENCE_EPSILON = 0.05


def algorithm_problems(config: Config) -> Iterator[Problem]:
    """What makes a run impossible, or another algorithm than its recipe says."""
    yield from _batches(config)
    yield from _loss(config)
    yield from _advantages(config)


def doubtful_algorithm(config: Config) -> Iterator[Problem]:
    """What is possible, but probably not meant."""
    algorithm, preset = config.algorithm, preset_of(config.algorithm)
    if algorithm.loss == "dr_grpo" and preset.scale_rewards != "none":
        expected = "Dr.GRPO only centres rewards; dividing by a standard deviation brings back its bias"
        yield problem_at(config, "algorithm.scale_rewards", expected, "auto is the published form")
    corrects = loss_settings(algorithm).importance_correction != "none" or preset.old_logprobs == "generator"
    if config.max_staleness and not corrects:
        expected = f"with max_staleness={config.max_staleness}, tokens of older policies are not reweighted"
        yield problem_at(config, "algorithm.importance_cap", expected, "Its default is 2.0", "max_staleness")
    if preset.ratio_level in ("sequence", "sequence_token") and preset.objective == "ppo_clip":
        if preset.epsilon_low > _SEQUENCE_EPSILON or preset.epsilon_high > _SEQUENCE_EPSILON:
            expected = (
                f"the ratio of a completion is a mean over its tokens: a clip above {_SEQUENCE_EPSILON} never binds"
            )
            yield problem_at(
                config, "algorithm.epsilon_high", expected, "GSPO uses 3e-4 and 4e-4", "algorithm.ratio_level"
            )
        if preset.aggregation not in ("sequence", "sequence_sum"):
            expected = "with a ratio of completions, each would weigh by its length"
            yield problem_at(config, "algorithm.aggregation", expected, "sequence is GSPO's", "algorithm.ratio_level")
    sequence = loss_settings(algorithm).importance_correction == "sequence_mask"
    if sequence and algorithm.importance_floor is None and config.generator.max_completion_tokens > 1024:
        expected = "over long completions the product of ratios falls to 0 without anybody noticing"
        yield problem_at(config, "algorithm.importance_floor", expected, "token_truncate does not depend on length")


def _batches(config: Config) -> Iterator[Problem]:
    algorithm = config.algorithm
    if algorithm.optimizer_batches > algorithm.groups_per_step >= 1:
        expected = f"expected at most groups_per_step={algorithm.groups_per_step}: a group is never split"
        nearest = "Write fewer, or raise algorithm.groups_per_step"
        yield problem_at(config, "algorithm.optimizer_batches", expected, nearest, "algorithm.groups_per_step")
    if preset_of(algorithm).zero_variance_groups == "replace" and algorithm.max_replacements == 0:
        expected = "zero_variance_groups=replace needs at least 1 try per slot"
        related = "algorithm.zero_variance_groups"
        yield problem_at(config, "algorithm.max_replacements", expected, "Its default is 4", related)


_NEAREST = {
    "delta": "INTELLECT-2 uses 4; null turns it off",
    "ratio_cap": "ScaleRL uses 4 to 8",
    "kl_estimator": "k3_unbiased has the reverse KL's gradient; algorithm.kl_in=reward takes k1",
}


def _loss(config: Config) -> Iterator[Problem]:
    algorithm, preset = config.algorithm, preset_of(config.algorithm)
    for found in loss_settings(algorithm).contradictions():
        nearest = _NEAREST.get(found.key, "")
        related = ("algorithm.epsilon_high",) if found.key == "delta" else ()
        yield problem_at(config, f"algorithm.{found.key}", f"expected {found.expected}", nearest, *related)
    if preset.old_logprobs == "generator" and algorithm.importance_correction not in ("auto", "none"):
        expected = "expected none: with old_logprobs=generator the ratio corrects already, and would count twice"
        yield problem_at(config, "algorithm.importance_correction", expected, "", "algorithm.old_logprobs")
    if algorithm.beta > 0 and algorithm.kl_in != "loss" and algorithm.kl_estimator not in ("k1", "k3"):
        expected = "expected k1: that is what is taken from rewards"
        yield problem_at(config, "algorithm.kl_estimator", expected, "", "algorithm.kl_in")


def _advantages(config: Config) -> Iterator[Problem]:
    algorithm, preset = config.algorithm, preset_of(config.algorithm)
    several = algorithm.several_rewards
    if algorithm.beta_reward_max <= algorithm.beta_reward_min:
        expected = f"expected above beta_reward_min = {algorithm.beta_reward_min:g}"
        yield problem_at(config, "algorithm.beta_reward_max", expected, "", "algorithm.beta_reward_min")
    if preset.baseline == "beta" and preset.scale_rewards != "none":
        expected = "expected none: baseline=beta has a normaliser of its own"
        yield problem_at(config, "algorithm.scale_rewards", expected, "", "algorithm.baseline")
    if several == "normalize_then_sum" and preset.baseline != "mean":
        expected = "expected mean: normalize_then_sum takes z-scores of each group (GDPO)"
        yield problem_at(config, "algorithm.baseline", expected, "", "algorithm.several_rewards")
    if several != "sum_then_normalize" and not any(config.reward.functions.values()):
        expected = "there is no reward function with a weight to take it from"
        yield problem_at(config, "algorithm.several_rewards", expected, "", "reward.functions")
    if algorithm.beta > 0 and algorithm.kl_in != "loss":
        if several != "sum_then_normalize":
            expected = "expected loss: a KL term belongs to one reward, and there are several"
            yield problem_at(config, "algorithm.kl_in", expected, "", "algorithm.several_rewards")
        if preset.baseline == "beta":
            expected = "expected loss: baseline=beta needs rewards between two bounds"
            yield problem_at(config, "algorithm.kl_in", expected, "", "algorithm.baseline")
        if algorithm.kl_in == "token_reward" and preset.whiten_advantages == "completions":
            expected = "expected tokens or none: with token_reward each token has an advantage of its own"
            yield problem_at(config, "algorithm.whiten_advantages", expected, "", "algorithm.kl_in")
        if preset.zero_variance_groups == "drop":
            expected = "expected keep: with a KL term in the reward no group is without variance"
            yield problem_at(config, "algorithm.zero_variance_groups", expected, "", "algorithm.kl_in")
