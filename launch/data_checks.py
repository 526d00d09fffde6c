"""Checks of sections `model` and `data`. Local paths are relative to the working directory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from funicular.launch.arithmetic import KINDS
from funicular.launch.code_tasks import FORMATS
from funicular.launch.config import Config
from funicular.launch.config_values import get, problem_at
from funicular.launch.datasets import FILE_TYPES
from funicular.launch.models import EMBEDDED as EMBEDDED_MODEL
from funicular.launch.needle import needle_depths, needle_problem
from funicular.launch.problems import Problem
from funicular.launch.task_mapping import template_columns
from funicular.launch.task_sets import MADE_BY_RULE
from funicular.rewards.nearest import did_you_mean

_KINDS: dict[str, Iterable[str] | None] = {"arithmetic": KINDS, "code": FORMATS, "reasoning-gym": None}
"""Kinds of the sets that have kinds; None: only the package knows them, and says so when the data is loaded."""
_WITHOUT_ANSWER = ("code", "reasoning_gym", "regex")
"""Verifiers that may do without a reference answer; loading the data says whether each task has what they need."""


def model_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with section `model`."""
    name, folder = config.model.path, Path(config.model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            expected = "the folder has no config.json; expected a model in Hugging Face format"
            yield problem_at(config, "model.path", expected)
    elif name != EMBEDDED_MODEL and not _may_be_hub_id(name):
        expected = f"no such folder, seen from {Path.cwd()}; expected a folder, a hub id or {EMBEDDED_MODEL}"
        yield problem_at(config, "model.path", expected, did_you_mean(name, [EMBEDDED_MODEL]))
    template = config.model.chat_template
    if template not in ("auto", "plain") and not Path(template).expanduser().is_file():
        expected = f"expected auto, plain, or a Jinja file; no such file, seen from {Path.cwd()}"
        yield problem_at(config, "model.chat_template", expected, did_you_mean(template, ["auto", "plain"]))


def data_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with section `data`."""
    yield from _path(config, "data.path")
    yield from _path(config, "data.held_out_path")
    yield from _prompts(config)
    yield from _answers(config)
    yield from _held_out(config)
    yield from _kinds(config)
    yield from _needle(config)
    data = config.data
    if data.balance_column in {data.prompt_column, data.answer_column, data.id_column} - {None}:
        expected = "expected a column other than prompt, answer and id: those differ from task to task"
        yield problem_at(config, "data.balance_column", expected, "null draws tasks in a plain shuffle")


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _path(config: Config, key: str) -> Iterator[Problem]:
    name: str | None = get(config, key)
    if name is None or (name in MADE_BY_RULE and key == "data.path") or Path(name).expanduser().exists():
        return
    if _may_be_hub_id(name) and not name.endswith(FILE_TYPES):
        return
    folder = Path(name).expanduser().parent
    there = {path.name: str(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    known = [*MADE_BY_RULE, *there.values(), *there] if key == "data.path" else [*there.values(), *there]
    sets = f", or one of {', '.join(MADE_BY_RULE)}" if key == "data.path" else ""
    expected = f"no such file or folder, seen from {Path.cwd()}; expected one, or a hub id{sets}"
    yield problem_at(config, key, expected, did_you_mean(str(Path(name).expanduser()), known))


def _kinds(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.kinds is None:
        return
    if data.path not in _KINDS:
        expected = f"only {', '.join(_KINDS)} have kinds"
        yield problem_at(config, "data.kinds", expected, "Set it to null", "data.path")
        return
    known = _KINDS[data.path]
    kinds = [kind.strip() for kind in data.kinds.split(",")]
    for kind in dict.fromkeys(kinds):
        if known is not None and kind not in known:
            expected = f"no kind of task of {data.path} is called {kind!r}; expected some of {', '.join(known)}"
            yield problem_at(config, "data.kinds", expected, did_you_mean(kind, known), "data.path")
        elif kinds.count(kind) > 1:
            yield problem_at(config, "data.kinds", f"{kind} stands there twice", "Name each kind once")


def _needle(config: Config) -> Iterator[Problem]:
    data = config.data
    try:
        needle_depths(data.needle_depths)
    except ValueError as error:
        yield problem_at(config, "data.needle_depths", str(error).partition(": ")[2])
    found = needle_problem(data.needle_words, data.needle_count, data.needle_distractors)
    if data.path == "needle" and found is not None:
        keys = [f"data.{name}" for name in ("needle_words", "needle_count", "needle_distractors")]
        key = f"data.{found[0]}"
        yield problem_at(config, key, found[1], "", *(other for other in keys if other != key))


def _prompts(config: Config) -> Iterator[Problem]:
    if "{prompt}" not in config.data.prompt_template:
        expected = "expected a text with {prompt}, where the prompt column's text goes"
        yield problem_at(config, "data.prompt_template", expected, "Write for example 'Question: {prompt}'")
    try:
        template_columns(config.data)
    except ValueError as error:
        expected = str(error).partition(": ")[2]
        yield problem_at(config, "data.template_columns", expected, "", "data.prompt_template")
    if config.data.images_column is not None and not config.data.chat:
        expected = "images stand in chat messages, and plain text has none"
        yield problem_at(config, "data.images_column", expected, "Set data.chat=true", "data.chat")
    if config.data.system_prompt is not None and not config.data.chat:
        nearest = "Set data.chat=true, or move the text to data.prompt_template"
        yield problem_at(config, "data.system_prompt", "a system message needs chat", nearest, "data.chat")


def _answers(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.answer_column is None and config.reward.verifier not in _WITHOUT_ANSWER:
        expected = f"the verifier {config.reward.verifier} compares with a reference answer"
        yield problem_at(config, "data.answer_column", expected, "Name its column", "reward.verifier")
    if data.answer_pattern is None:
        return
    try:
        groups = re.compile(data.answer_pattern).groups
    except re.error as error:
        yield problem_at(config, "data.answer_pattern", f"not a regular expression: {error}")
        return
    if not groups:
        expected = "the pattern has no group; its first group is the reference answer"
        yield problem_at(config, "data.answer_pattern", expected, r"Write ( ) around it: '####\s*(.+)'")


def _held_out(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.path in MADE_BY_RULE and data.held_out_split is not None and data.held_out_path is None:
        expected = f"{data.path} has no splits"
        nearest = "Set it to null; data.held_out_fraction is held out"
        yield problem_at(config, "data.held_out_split", expected, nearest, "data.path")
    if config.evaluation.tasks and not (data.held_out_path or data.held_out_split or data.held_out_fraction):
        expected = "evaluation.tasks is above 0, and no task is held out"
        nearest = "Write a fraction, set data.held_out_path or data.held_out_split, or evaluation.tasks=0"
        yield problem_at(config, "data.held_out_fraction", expected, nearest, "evaluation.tasks")
