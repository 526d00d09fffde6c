"""A JSONL file of completions, each with the task that it answers: what `funicular score` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from funicular.launch.config import Config
from funicular.launch.datasets import DataError, Row, jsonl_rows
from funicular.launch.task_mapping import TaskMapping
from funicular.launch.tasks import load_tasks
from funicular.rewards.messages import content_text
from funicular.rewards.nearest import known_names
from funicular.rewards.types import Task

_OURS = ("completion", "completion_ids", "group_id")
"""What a row says of the completion; everything else is of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One row."""

    line: int
    task: Task
    group: tuple[str, str]
    """Rows with the same task, and the same `group_id` if they have one, are scored together."""
    text: str
    token_ids: list[int] | None
    """None: the row does not say."""


def read_completions(file: Path, config: Config) -> list[Completion]:
    """The rows, in the order of the file.

    A row holds `completion`, a text or a list of assistant messages, and says which task it answers: by `task_id`; or
    by the columns of a row of the recipe's data; or by the prompt alone, where the recipe's data has it. It may hold
    `completion_ids` and `group_id`.

    Raises:
        ValueError: an unreadable file or row; names file and line.
    """
    if not file.exists() or file.is_dir():
        raise DataError(f"{file}: no such file; expected JSONL with a completion on each line")
    tasks = _Tasks(config)
    found = [_completion(values, f"{file} line {line}", line, tasks) for line, values in jsonl_rows(file)]
    if not found:
        raise DataError(f"{file}: there are no rows")
    _check_same_tasks(found, file)
    return found


class _Tasks:
    """Finds the task of a row. The recipe's data is loaded when the first row needs it."""

    def __init__(self, config: Config) -> None:
        self._data = config.data
        self._verifier = config.reward.verifier
        self._options = config.reward.verifier_options
        self._seed = config.seed
        self._mapping = TaskMapping(config.data, self._verifier, self._options)

    def of(self, values: Mapping[str, Any], place: str) -> Task:
        own = Row(place=place, values={name: value for name, value in values.items() if name not in _OURS})
        task_id = values.get("task_id")
        if task_id is not None and str(task_id) in self._by_id:
            return self._by_id[str(task_id)]
        needed = {self._data.prompt_column, self._data.answer_column, self._data.id_column} - {None}
        if needed <= own.values.keys():
            return self._mapping.candidate(own).task
        if task_id is not None:
            near = get_close_matches(str(task_id), self._by_id, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise DataError(f"{place}: task_id={task_id}: data.path={self._data.path} has no such task{hint}")
        prompt = values.get(self._data.prompt_column)
        if prompt is None:
            columns = ", ".join(sorted(str(name) for name in needed))
            raise DataError(f"{place}: no task_id; expected one, or a row of the data with {columns}")
        asked = self._data.prompt_template.replace("{prompt}", prompt) if isinstance(prompt, str) else ""
        if asked not in self._by_prompt:
            raise DataError(f"{place}: data.path={self._data.path} has no task with this prompt: {prompt!r:.80}")
        return self._by_prompt[asked]

    @cached_property
    def _all(self) -> tuple[Task, ...]:
        data = replace(self._data, contamination="allow")  # no task is left out here
        loaded = load_tasks(data, self._verifier, self._seed, verifier_options=self._options)
        return (*loaded.train, *loaded.held_out)

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.task_id: task for task in self._all}

    @cached_property
    def _by_prompt(self) -> dict[str, Task]:
        return {
            task.prompt if isinstance(task.prompt, str) else content_text(task.prompt[-1]["content"]): task
            for task in self._all
        }


def _completion(values: dict[str, Any], place: str, line: int, tasks: _Tasks) -> Completion:
    if "completion" not in values:
        raise DataError(f"{place}: no completion; {known_names('completion', values)}")
    task = tasks.of(values, place)
    return Completion(
        line=line,
        task=task,
        group=(task.task_id, str(values.get("group_id", ""))),
        text=_text(values["completion"], place),
        token_ids=_token_ids(values.get("completion_ids"), place),
    )


def _text(completion: Any, place: str) -> str:
    if isinstance(completion, str):
        return completion
    messages = completion if isinstance(completion, list) else []
    if messages and all(
        isinstance(message, dict) and message.get("role") == "assistant" and isinstance(message.get("content"), str)
        for message in messages
    ):
        return "".join(message["content"] for message in messages)
    raise DataError(f"{place}: completion={completion!r:.80}; expected text, or a list of assistant messages")


def _token_ids(token_ids: Any, place: str) -> list[int] | None:
    if token_ids is None or (isinstance(token_ids, list) and all(type(one) is int for one in token_ids)):
        return token_ids
    raise DataError(f"{place}: completion_ids={token_ids!r:.80}; expected a list of token ids")


def _check_same_tasks(completions: list[Completion], file: Path) -> None:
    first: dict[str, Completion] = {}
    for one in completions:
        other = first.setdefault(one.task.task_id, one)
        if other.task != one.task:
            raise DataError(
                f"{file} lines {other.line} and {one.line}: the same task_id {one.task.task_id} with different columns"
            )
