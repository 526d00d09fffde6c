"""Rules between the values of a recipe: what types cannot say. Cheap, and free of side effects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from funicular.launch.config import Config, DataConfig, ModelConfig
from funicular.launch.models import EMBEDDED as EMBEDDED_MODEL
from funicular.launch.problems import Problem
from funicular.launch.ranges import RANGES
from funicular.launch.reward_checks import reward_problems
from funicular.launch.yaml_nodes import show_value

EMBEDDED_TASKS = "arithmetic"
_DATA_FILE = (".jsonl", ".json", ".parquet")


def check(config: Config, folder: Path) -> list[Problem]:
    """Everything that makes a run impossible, at once.

    Args:
        folder: what reward files are relative to. Other paths are relative to the working directory.
    """
    return [
        *_out_of_range(config),
        *_run(config),
        *_model(config.model),
        *_data(config),
        *reward_problems(config.reward, folder),
        *_algorithm(config),
        *_learner_and_sync(config),
    ]


def warn(config: Config) -> list[Problem]:
    """What is possible, but probably not meant."""
    algorithm, generator, learner = config.algorithm, config.generator, config.learner
    found = []
    if algorithm.loss == "dr_grpo" and algorithm.scale_rewards in ("group", "batch"):
        expected = "Dr.GRPO only centres rewards; dividing them by a standard deviation brings its bias back"
        found.append(_problem(config, "algorithm.scale_rewards", expected, "auto is the published form"))
    if learner.ranks > algorithm.groups_per_step:
        expected = f"more ranks than groups_per_step={algorithm.groups_per_step}: some ranks may get few rows or none"
        found.append(_problem(config, "learner.ranks", expected, "Raise algorithm.groups_per_step"))
    if generator.dtype != learner.compute_dtype:
        expected = (
            f"the learner computes in {learner.compute_dtype}: log-probabilities of the two will differ more"
        )
        nearest = (
            f"Set generator.dtype={learner.compute_dtype}, or keep algorithm.importance_cap to correct for it"
        )
        found.append(_problem(config, "generator.dtype", expected, nearest))
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    if learner.micro_batch_tokens < longest:
        expected = f"one row may have {longest} tokens (max_prompt_tokens + max_completion_tokens)"
        nearest = "A row is never cut, so such a pass takes more memory than this says"
        found.append(_problem(config, "learner.micro_batch_tokens", expected, nearest))
    if config.max_staleness and algorithm.importance_cap is None:
        expected = (
            f"with max_staleness={config.max_staleness} completions come from older policies, uncorrected"
        )
        found.append(_problem(config, "algorithm.importance_cap", expected, "Its default is 2.0"))
    return found


def _problem(
    config: Config, key: str, expected: str, nearest: str = "", related: tuple[str, ...] = ()
) -> Problem:
    value = show_value(_get(config, key))
    return Problem(key=key, value=value, expected=expected, nearest=nearest, related=related)


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _out_of_range(config: Config) -> Iterator[Problem]:
    for key, allowed in RANGES.items():
        value = _get(config, key)
        if value is not None and not allowed.holds(value):
            yield _problem(config, key, f"expected {allowed}")


def _run(config: Config) -> Iterator[Problem]:
    if config.run_dir is None and (
        not config.name.strip() or config.name in (".", "..") or "/" in config.name
    ):
        yield _problem(config, "name", "expected a word that can name a folder; the run folder is runs/NAME")
    if config.run_dir is not None and Path(config.run_dir).is_file():
        yield _problem(config, "run_dir", "expected a folder, this is a file")
    if config.resume not in ("auto", "never") and not Path(config.resume).is_dir():
        expected = (
            f"expected auto, never, or the folder of a checkpoint; no such folder, seen from {Path.cwd()}"
        )
        yield _problem(config, "resume", expected, _nearest(config.resume, ("auto", "never")))
    address = config.cluster.address
    if address not in ("auto", "local") and not re.fullmatch(r"(ray://)?[^\s:/]+:\d+", address):
        expected = "expected auto, local, or host:port"
        yield _problem(config, "cluster.address", expected, _nearest(address, ("auto", "local")))


def _model(model: ModelConfig) -> Iterator[Problem]:
    path = Path(model.path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            expected = "the folder has no config.json; expected a model in Hugging Face format"
            yield Problem(key="model.path", value=model.path, expected=expected)
    elif model.path != EMBEDDED_MODEL and (
        model.path.startswith((".", "/", "~")) or model.path.count("/") != 1
    ):
        expected = f"no such folder, seen from {Path.cwd()}; expected a folder, a hub id (owner/name) or {EMBEDDED_MODEL}"
        nearest = _nearest(model.path, (EMBEDDED_MODEL,))
        yield Problem(key="model.path", value=model.path, expected=expected, nearest=nearest)
    template = model.chat_template
    if template not in ("auto", "plain") and not Path(template).expanduser().is_file():
        expected = f"expected auto, plain, or a Jinja file; no such file, seen from {Path.cwd()}"
        nearest = _nearest(template, ("auto", "plain"))
        yield Problem(key="model.chat_template", value=template, expected=expected, nearest=nearest)


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    for key in ("data.path", "data.held_out_path"):
        yield from _data_path(config, key)
    if "{prompt}" not in data.prompt_template:
        expected = "expected a text with {prompt} where the task's prompt goes"
        yield _problem(config, "data.prompt_template", expected, "Write for example 'Question: {prompt}'")
    yield from _answers(config)
    held_out = data.held_out_path or data.held_out_split or data.held_out_fraction
    if config.evaluation.tasks and not held_out:
        expected = "evaluation needs held-out tasks (evaluation.tasks is above 0)"
        nearest = "Set a fraction, data.held_out_path or data.held_out_split; or evaluation.tasks=0"
        yield _problem(config, "data.held_out_fraction", expected, nearest, ("evaluation.tasks",))


def _data_path(config: Config, key: str) -> Iterator[Problem]:
    name: str | None = _get(config, key)
    if name is None or (name == EMBEDDED_TASKS and key == "data.path") or Path(name).expanduser().exists():
        return
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(_DATA_FILE)
    if is_path or key == "data.held_out_path":
        folder = Path(name).expanduser().parent
        there = sorted(str(path) for path in folder.iterdir()) if folder.is_dir() else []
        expected = f"no such file or folder, seen from {Path.cwd()}"
        yield _problem(config, key, expected, _nearest(str(Path(name).expanduser()), there))
    elif nearest := _nearest(name, (EMBEDDED_TASKS,)):
        expected = f"expected {EMBEDDED_TASKS}, a JSONL or Parquet file or folder, or a hub id"
        yield _problem(config, key, expected, nearest)


def _answers(config: Config) -> Iterator[Problem]:
    data: DataConfig = config.data
    if data.answer_column is None and data.path != EMBEDDED_TASKS:
        expected = f"the verifier {config.reward.verifier} compares with a reference answer"
        yield _problem(
            config, "data.answer_column", expected, "Name the column that has it", ("reward.verifier",)
        )
    if data.answer_pattern is None:
        return
    try:
        groups = re.compile(data.answer_pattern).groups
    except re.error as error:
        yield _problem(config, "data.answer_pattern", f"not a regular expression: {error}")
        return
    if not groups:
        expected = "the pattern has no group; its first group is the reference answer"
        yield _problem(
            config, "data.answer_pattern", expected, r"Put ( ) around the answer, as in '####\s*(.+)'"
        )


def _algorithm(config: Config) -> Iterator[Problem]:
    algorithm = config.algorithm
    if algorithm.optimizer_batches > algorithm.groups_per_step >= 1:
        expected = f"expected at most groups_per_step={algorithm.groups_per_step}: a group is never split"
        nearest = f"Write {algorithm.groups_per_step} or fewer, or raise algorithm.groups_per_step"
        yield _problem(
            config, "algorithm.optimizer_batches", expected, nearest, ("algorithm.groups_per_step",)
        )
    if algorithm.delta is not None and 1 < algorithm.delta <= 1 + algorithm.epsilon_high:
        expected = (
            f"expected above 1 + epsilon_high = {1 + algorithm.epsilon_high:g}, or it becomes the upper clip"
        )
        nearest = "INTELLECT-2 uses 4; null turns it off"
        yield _problem(config, "algorithm.delta", expected, nearest, ("algorithm.epsilon_high",))
    if algorithm.zero_variance_groups == "replace" and algorithm.max_replacements == 0:
        expected = "zero_variance_groups=replace needs at least 1 try per slot"
        yield _problem(
            config, "algorithm.max_replacements", expected, "", ("algorithm.zero_variance_groups",)
        )


def _learner_and_sync(config: Config) -> Iterator[Problem]:
    learner, generator = config.learner, config.generator
    if learner.dtype == "bfloat16" and learner.compute_dtype == "float32":
        expected = "parameters in bfloat16 are not multiplied in float32"
        nearest = "Set learner.compute_dtype=bfloat16, or learner.dtype=float32"
        yield _problem(config, "learner.compute_dtype", expected, nearest, ("learner.dtype",))
    if learner.lora_rank and not learner.lora_targets.strip():
        expected = "expected all-linear, or names of modules separated by commas"
        yield _problem(config, "learner.lora_targets", expected, "", ("learner.lora_rank",))
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    if config.weight_sync.canary_tokens > longest:
        expected = f"expected at most max_prompt_tokens + max_completion_tokens = {longest}: the text must fit an engine"
        related = ("generator.max_prompt_tokens", "generator.max_completion_tokens")
        yield _problem(config, "weight_sync.canary_tokens", expected, f"Write {longest} or fewer", related)


def _nearest(value: str, known: tuple[str, ...] | list[str]) -> str:
    near = get_close_matches(value, known, n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else ""
