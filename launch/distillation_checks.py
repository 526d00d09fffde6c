"""Rules of section `distillation`, and between it and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from funicular.actors.distillation_config import (
    DistillationConfig,
    distils,
    reward_factor,
    teacher_scores_samples,
)
from funicular.actors.losses.presets import preset_of
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.models import EMBEDDED
from funicular.launch.problems import Problem
from funicular.rewards.nearest import did_you_mean


def distillation_problems(config: Config) -> Iterator[Problem]:
    """What makes a run with a teacher, or with given completions, impossible."""
    yield from _group_size(config)
    yield from _given(config)
    if not distils(config.distillation):
        return
    if config.distillation.teacher is not None:
        yield from _teacher(config)
    yield from _rewards(config)
    if teacher_scores_samples(config.distillation):
        yield from _sampled(config)
        if config.distillation.temperature is not None:
            expected = "expected null: tokens are compared at the temperature that sampled them"
            yield problem_at(config, "distillation.temperature", expected, "", "distillation.loss")


def doubtful_distillation(config: Config) -> Iterator[Problem]:
    """What is possible, but probably not meant."""
    distillation = config.distillation
    if distils(distillation) and distillation.coef == 0:
        yield problem_at(config, "distillation.coef", "with 0 the teacher is asked and teaches nothing")
    if distillation.loss != "jsd" and distillation.jsd_beta != DistillationConfig().jsd_beta:
        expected = f"distillation.loss={distillation.loss} does not read it"
        yield problem_at(config, "distillation.jsd_beta", expected, "Set distillation.loss=jsd", "distillation.loss")
    if not distils(distillation) and distillation.reward_coef != 0:
        expected = "without a teacher rewards count as they are"
        yield problem_at(config, "distillation.reward_coef", expected, "Name a teacher", "distillation.teacher")


def _group_size(config: Config) -> Iterator[Problem]:
    given = config.data.completion_column is not None
    if given and config.algorithm.group_size != 1:
        expected = "expected 1: a task has one given completion"
        yield problem_at(config, "algorithm.group_size", expected, "", "data.completion_column")
    if not given and config.algorithm.group_size == 1 and reward_factor(config.distillation) != 0:
        expected = (
            "expected at least 2: a reward is compared with the others of its group; one alone always has advantage 0"
        )
        yield problem_at(config, "algorithm.group_size", expected, "", "distillation.reward_coef")


def _given(config: Config) -> Iterator[Problem]:
    """Nothing sampled what is given: what compares with the policy that sampled has nothing to compare with."""
    distillation, algorithm, key = config.distillation, config.algorithm, "data.completion_column"
    if distillation.loss == "hard" and distillation.teacher is not None:
        expected = "expected null: with distillation.loss=hard the given completions are all that is learnt from"
        yield problem_at(config, "distillation.teacher", expected, "", "distillation.loss")
    if config.data.completion_column is None:
        if distillation.loss == "hard":
            expected = "hard learns given completions, and data.completion_column names none"
            yield problem_at(config, "distillation.loss", expected, "Name their column", key)
        return
    if not distils(distillation):
        expected = "nothing would be learnt from given completions"
        nearest = "Set distillation.loss=hard, or a distillation.teacher with loss jsd or forward_kl"
        yield problem_at(config, key, expected, nearest, "distillation.loss", "distillation.teacher")
    elif distillation.loss == "reverse_kl":
        expected = "expected hard, jsd or forward_kl: reverse_kl needs tokens that the student sampled"
        yield problem_at(config, "distillation.loss", expected, "", key)
    if reward_factor(distillation) != 0 and distils(distillation):
        expected = "expected 0: given completions were not sampled, so a reward says nothing of the policy"
        yield problem_at(config, "distillation.reward_coef", expected, "", key)
    if algorithm.beta > 0:
        expected = "expected 0: a KL to the reference policy is estimated on tokens that the policy sampled"
        yield problem_at(config, "algorithm.beta", expected, "", key)
    if preset_of(algorithm).old_logprobs == "generator":
        expected = "expected learner: no generator gave given completions a log-probability"
        yield problem_at(config, "algorithm.old_logprobs", expected, "", key, "algorithm.loss")
    if algorithm.importance_correction not in ("auto", "none"):
        expected = "expected auto or none: no generator gave given completions a log-probability"
        yield problem_at(config, "algorithm.importance_correction", expected, "", key)


def _teacher(config: Config) -> Iterator[Problem]:
    name = config.distillation.teacher or ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            expected = "the folder has no config.json; expected a model in Hugging Face format"
            yield problem_at(config, "distillation.teacher", expected)
    elif name != EMBEDDED and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        expected = f"no such folder, seen from {Path.cwd()}; expected a folder, a hub id or {EMBEDDED}"
        yield problem_at(config, "distillation.teacher", expected, did_you_mean(name, [EMBEDDED]))


def _rewards(config: Config) -> Iterator[Problem]:
    if preset_of(config.algorithm).zero_variance_groups != "keep":
        expected = "expected keep: groups whose rewards are all equal learn from the teacher"
        yield problem_at(config, "algorithm.zero_variance_groups", expected, "", "distillation.teacher")
    if reward_factor(config.distillation) == 0 and config.algorithm.beta > 0 and config.algorithm.kl_in != "loss":
        expected = "expected loss: with distillation.reward_coef=0 nothing is learnt from rewards"
        yield problem_at(config, "algorithm.kl_in", expected, "", "distillation.reward_coef", "distillation.teacher")


def _sampled(config: Config) -> Iterator[Problem]:
    """Each token has an advantage of its own, so each needs a ratio of its own."""
    preset = preset_of(config.algorithm)
    nearest = "gspo_token has one that takes advantages of tokens"
    if preset.objective == "gmpo":
        expected = "gmpo has one ratio for a completion: the advantages of its tokens would be mixed"
        yield problem_at(config, "algorithm.loss", expected, nearest, "distillation.teacher")
    elif preset.ratio_level in ("sequence", "sequence_sum"):
        expected = "one ratio for a completion would mix the advantages of its tokens; expected token or sequence_token"
        yield problem_at(config, "algorithm.ratio_level", expected, nearest, "algorithm.loss", "distillation.teacher")
