"""Rules between the values of a recipe: what types cannot say. Cheap, and free of side effects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from funicular.launch.algorithm_checks import algorithm_problems, doubtful_algorithm
from funicular.launch.checkpoint_checks import checkpoint_problems, doubtful_checkpoints, unfit_for_a_folder
from funicular.launch.colocation_checks import colocation_problems
from funicular.launch.config import Config
from funicular.launch.config_values import get, problem_at
from funicular.launch.data_checks import data_problems, model_problems
from funicular.launch.distillation_checks import distillation_problems, doubtful_distillation
from funicular.launch.generator_checks import doubtful_generators, generator_problems
from funicular.launch.learner_checks import learner_problems, learner_warnings
from funicular.launch.problems import Problem
from funicular.launch.ranges import RANGES
from funicular.launch.reward_checks import reward_problems
from funicular.launch.sandbox_checks import sandbox_problems
from funicular.launch.sync_checks import sync_problems
from funicular.launch.tracking_checks import tracking_problems
from funicular.rewards.nearest import did_you_mean


def check(config: Config, folder: Path) -> list[Problem]:
    """Everything that makes a run impossible, at once.

    Args:
        folder: what reward files are relative to. Other paths are relative to the working directory.
    """
    return [
        *_out_of_range(config),
        *_run(config),
        *model_problems(config),
        *data_problems(config),
        *reward_problems(config.reward, folder),
        *sandbox_problems(config),
        *algorithm_problems(config),
        *distillation_problems(config),
        *learner_problems(config),
        *generator_problems(config),
        *sync_problems(config),
        *colocation_problems(config),
        *checkpoint_problems(config),
        *tracking_problems(config),
    ]


def warn(config: Config) -> list[Problem]:
    """What is possible, but probably not meant."""
    return [
        *doubtful_algorithm(config),
        *doubtful_distillation(config),
        *_doubtful_learner(config),
        *doubtful_generators(config),
        *learner_warnings(config),
        *doubtful_checkpoints(config),
    ]


def _out_of_range(config: Config) -> Iterator[Problem]:
    for key, allowed in RANGES.items():
        value = get(config, key)
        if value is not None and not allowed.holds(value):
            yield problem_at(config, key, f"expected {allowed}")


def _run(config: Config) -> Iterator[Problem]:
    if unfit_for_a_folder(config.name) and config.run_dir is None:
        expected = "expected a word that can name a folder, because the run folder is runs/NAME"
        yield problem_at(config, "name", expected, "", "run_dir")
    if config.run_dir is not None and (not config.run_dir or Path(config.run_dir).is_file()):
        yield problem_at(config, "run_dir", "expected a folder, new or of an earlier run")
    # Whether the folder is there is asked later: a PATH that was gone back to may have been deleted since.
    if config.resume not in ("auto", "never") and not Path(config.resume).name.startswith("step_"):
        expected = "expected auto, never, or a checkpoint's folder such as runs/NAME/checkpoints/step_000010"
        yield problem_at(config, "resume", expected, did_you_mean(config.resume, ["auto", "never"]))
    address = config.cluster.address
    if address not in ("auto", "local") and not re.fullmatch(r"(ray://)?[^\s:/]+:\d+", address):
        expected = "expected auto, local, or host:port"
        yield problem_at(config, "cluster.address", expected, did_you_mean(address, ["auto", "local"]))


def _doubtful_learner(config: Config) -> Iterator[Problem]:
    learner, generator = config.learner, config.generator
    groups = config.algorithm.groups_per_step
    if learner.ranks // max(1, learner.sequence_parallel) > groups:
        expected = f"more ranks than groups_per_step={groups}: some ranks may get few rows or none"
        yield problem_at(config, "learner.ranks", expected, "Raise algorithm.groups_per_step")
    if generator.dtype != learner.compute_dtype:
        expected = f"the learner computes in {learner.compute_dtype}, so log-probabilities differ more"
        nearest = f"Set generator.dtype={learner.compute_dtype}, or keep algorithm.importance_cap"
        yield problem_at(config, "generator.dtype", expected, nearest, "learner.compute_dtype")
    heads = {
        "generator.head_dtype": generator.dtype if generator.head_dtype == "auto" else generator.head_dtype,
        "learner.head_dtype": learner.compute_dtype if learner.head_dtype == "auto" else learner.head_dtype,
    }
    if "float32" in (generator.head_dtype, learner.head_dtype) and len(set(heads.values())) > 1:
        coarse = next(key for key, dtype in heads.items() if dtype != "float32")
        expected = f"one side multiplies its output head in float32, {coarse.split('.')[0]} in bfloat16"
        yield problem_at(config, coarse, expected, f"Set {coarse}=float32", *(heads.keys() - {coarse}))
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    if learner.micro_batch_tokens * learner.sequence_parallel < longest:
        expected = f"one row may have {longest} tokens (max_prompt_tokens + max_completion_tokens)"
        nearest = "A row is never cut: its pass takes more memory than this says"
        yield problem_at(config, "learner.micro_batch_tokens", expected, nearest)
