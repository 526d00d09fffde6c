"""Tasks: from a recipe's section `data` to training and held-out tasks, and the endless order they are drawn in."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from funicular.launch.arithmetic import arithmetic_rows
from funicular.launch.config import DataConfig
from funicular.launch.contamination import contaminated
from funicular.launch.datasets import DataError, Row, column, read_rows
from funicular.rewards.types import Message, Task
from funicular.rewards.verifiers import check_answer, check_verifier

EMBEDDED = "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read and what was left out, for the terminal and the run's parameters."""

    train_rows: int
    held_out_rows: int
    """0 where the held-out tasks were taken from the training rows."""
    duplicates_removed: int
    """Rows whose prompt had occurred before in the same set."""
    contaminated: tuple[str, ...]
    """task_id of each held-out task that the training data gives away; dropped unless data.contamination=allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """The tasks of a run."""

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    report: DataReport
    balance_column: str | None
    """Column whose values are drawn in turn; None: plain shuffle."""

    def iterator(self, seed: int, position: int = 0) -> TaskIterator:
        """The training tasks in the order of this seed, from `position` on."""
        return TaskIterator(self.train, seed, position=position, balance_column=self.balance_column)


@dataclass(frozen=True, slots=True)
class _Candidate:
    task: Task
    text: str
    """The user's prompt before any template: what makes duplicates and overlaps."""
    place: str


class TaskIterator:
    """Endless: each epoch is a new shuffle. The order depends on tasks, seed and position only.

    With `balance_column`, its values take turns, each with its own shuffle and epochs: draw k is of value k mod n.

    Args:
        position: tasks drawn before; the next one is what an iterator that drew them would give.
    """

    def __init__(
        self, tasks: Sequence[Task], seed: int, *, position: int = 0, balance_column: str | None = None
    ) -> None:
        if not tasks:
            raise ValueError("no tasks to draw from")
        if position < 0:
            raise ValueError(f"position={position}, expected 0 or more")
        self.position = position
        """Tasks drawn so far."""
        self._tasks = tasks
        self._seed = seed
        by_value: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            value = "" if balance_column is None else str(task.columns[balance_column])
            by_value.setdefault(value, []).append(index)
        self._pools = sorted(by_value.items())
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def epoch(self) -> int:
        """position // number of tasks."""
        return self.position // len(self._tasks)

    def next(self) -> Task:
        """Draw the next task."""
        turn, pool = divmod(self.position, len(self._pools))
        value, indexes = self._pools[pool]
        epoch, place = divmod(turn, len(indexes))
        if self._orders.get(value, (-1, []))[0] != epoch:
            order = list(indexes)
            random.Random(f"{self._seed}/{epoch}/{value}").shuffle(order)
            self._orders[value] = (epoch, order)
        self.position += 1
        return self._tasks[self._orders[value][1][place]]


def load_tasks(config: DataConfig, verifier: str, seed: int) -> TaskSet:
    """Read, map and split the data.

    Args:
        verifier: name, put on every task; reference answers are checked against what it can use.
        seed: of the embedded set only.

    Raises:
        DataError: unreadable data, a missing column, an answer that does not match; names key, file and row.
        ValueError: an impossible combination of keys, or an unknown verifier.
    """
    check_verifier(verifier)
    pattern = _check(config)
    rows = _training_rows(config, seed)
    train, removed = _unique([_candidate(row, config, verifier, pattern) for row in rows])
    held_out_rows = _held_out_rows(config)
    if held_out_rows:
        held_out, removed_there = _unique([_candidate(row, config, verifier, pattern) for row in held_out_rows])
        removed += removed_there
    else:
        held_out = [c for c in train if _fraction_of(c.task.task_id) < config.held_out_fraction]
        train = [c for c in train if _fraction_of(c.task.task_id) >= config.held_out_fraction]
    if not train:
        raise DataError(f"data.held_out_fraction={config.held_out_fraction}: no training task is left")
    kept, given_away = _decontaminate(train, held_out, config)
    return TaskSet(
        train=tuple(c.task for c in train),
        held_out=tuple(c.task for c in kept),
        report=DataReport(
            train_rows=len(rows),
            held_out_rows=len(held_out_rows),
            duplicates_removed=removed,
            contaminated=tuple(c.task.task_id for c in given_away),
        ),
        balance_column=_balance_column(config, rows),
    )


def _check(config: DataConfig) -> re.Pattern[str] | None:
    if "{prompt}" not in config.prompt_template:
        raise ValueError(f"data.prompt_template={config.prompt_template!r}: expected {{prompt}} in it")
    if not 0 <= config.held_out_fraction < 1:
        raise ValueError(f"data.held_out_fraction={config.held_out_fraction}: expected 0 or more, below 1")
    if config.system_prompt is not None and not config.chat:
        raise ValueError("data.system_prompt needs chat messages; set data.chat=true or put it in prompt_template")
    if config.answer_pattern is None:
        return None
    try:
        pattern = re.compile(config.answer_pattern)
    except re.error as error:
        raise ValueError(f"data.answer_pattern={config.answer_pattern!r}: {error}") from None
    if pattern.groups < 1:
        raise ValueError(f"data.answer_pattern={config.answer_pattern!r}: expected a group, such as '#### (.*)'")
    return pattern


def _training_rows(config: DataConfig, seed: int) -> list[Row]:
    if config.path == EMBEDDED:
        made = arithmetic_rows(config.kinds, config.size, seed)
        return [Row(place=f"arithmetic row {n}", values=values) for n, values in enumerate(made, start=1)]
    return read_rows(config.path, subset=config.subset, split=config.split, key="data.path")


def _held_out_rows(config: DataConfig) -> list[Row]:
    """Rows of the path or split that holds out; none where a part of the training data does."""
    if config.held_out_path is None and config.held_out_split is None:
        return []
    path = config.held_out_path or config.path
    key = "data.held_out_path" if config.held_out_path else "data.held_out_split"
    if path == EMBEDDED:
        raise ValueError(f"{key}: the embedded set holds out data.held_out_fraction of its tasks; leave it null")
    return read_rows(path, subset=config.subset, split=config.held_out_split or config.split, key=key)


def _candidate(row: Row, config: DataConfig, verifier: str, pattern: re.Pattern[str] | None) -> _Candidate:
    raw_prompt = column(row, config.prompt_column, "data.prompt_column")
    prompt, text = _prompt(raw_prompt, row, config)
    raw_answer = None if config.answer_column is None else column(row, config.answer_column, "data.answer_column")
    answer = _answer(raw_answer, row, config, pattern)
    if config.id_column is not None:
        task_id = str(column(row, config.id_column, "data.id_column"))
    else:
        task_id = hashlib.sha256(f"{raw_prompt}\0{raw_answer}".encode()).hexdigest()[:16]
    try:
        check_answer(verifier, answer)
    except ValueError as error:
        raise DataError(f"{row.place}: {error}") from None
    used = {config.prompt_column, config.answer_column, config.id_column}
    columns = {name: value for name, value in row.values.items() if name not in used}
    task = Task(task_id=task_id, prompt=prompt, answer=answer, verifier=verifier, columns=columns)
    return _Candidate(task, text, row.place)


def _prompt(raw: Any, row: Row, config: DataConfig) -> tuple[str | tuple[Message, ...], str]:
    """The task's prompt, and the user's text in it."""
    system: tuple[Message, ...] = ()
    if config.system_prompt is not None:
        system = (Message(role="system", content=config.system_prompt),)
    if isinstance(raw, str) and raw.strip():
        text = config.prompt_template.replace("{prompt}", raw)
        return ((*system, Message(role="user", content=text)) if config.chat else text), raw
    if not isinstance(raw, list) or not raw or not all(_is_message(item) for item in raw):
        raise DataError(
            f"data.prompt_column={config.prompt_column}: {row.place} holds {raw!r:.80}; "
            "expected text or a list of {role, content} messages"
        )
    if not config.chat or config.prompt_template != "{prompt}":
        raise DataError(f"{row.place}: the prompt is a list of messages; data.chat and data.prompt_template need text")
    messages = tuple(Message(role=item["role"], content=item["content"]) for item in raw)
    if messages[0]["role"] == "system":
        system = ()
    return (*system, *messages), "\n".join(m["content"] for m in messages if m["role"] == "user")


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("role", "content"))


def _answer(raw: Any, row: Row, config: DataConfig, pattern: re.Pattern[str] | None) -> str | None:
    if config.answer_column is None:
        return None
    if not isinstance(raw, str | int | float):
        raise DataError(
            f"data.answer_column={config.answer_column}: {row.place} holds {raw!r:.80}; expected text or a number"
        )
    if pattern is None:
        return str(raw)
    match = pattern.search(str(raw))
    if match is None or match.group(1) is None:
        raise DataError(f"data.answer_pattern={pattern.pattern!r} does not match {row.place}: {str(raw)[-200:]!r}")
    return match.group(1).strip()


def _unique(candidates: list[_Candidate]) -> tuple[list[_Candidate], int]:
    """Candidates without those whose prompt stood there before, and how many those were."""
    by_text: dict[str, _Candidate] = {}
    by_id: dict[str, _Candidate] = {}
    for candidate in candidates:
        if candidate.text in by_text:
            continue
        by_text[candidate.text] = candidate
        other = by_id.setdefault(candidate.task.task_id, candidate)
        if other is not candidate:
            raise DataError(
                f"data.id_column: {other.place} and {candidate.place} have the same id {candidate.task.task_id!r} "
                "and different prompts"
            )
    return list(by_text.values()), len(candidates) - len(by_text)


def _decontaminate(
    train: list[_Candidate], held_out: list[_Candidate], config: DataConfig
) -> tuple[list[_Candidate], list[_Candidate]]:
    """The held-out candidates to keep, and those that the training data gives away."""
    found = set(contaminated((c.text for c in train), [c.text for c in held_out]))
    given_away = [held_out[i] for i in sorted(found)]
    if config.contamination == "allow" or not given_away:
        return held_out, given_away
    if config.contamination == "error":
        raise DataError(
            f"data.contamination=error: {len(given_away)} held-out tasks share 13 words in a row with, or stand in, "
            f"the training data; the first: {given_away[0].place}"
        )
    kept = [c for i, c in enumerate(held_out) if i not in found]
    if not kept:
        raise DataError(
            f"all {len(held_out)} held-out tasks share 13 words in a row with the training data: probably a text around "
            "every prompt, which belongs in data.prompt_template; or set data.contamination=allow"
        )
    return kept, given_away


def _fraction_of(task_id: str) -> float:
    """A number in [0, 1) that depends on the id alone, so that a task is held out in every run or in none."""
    return int.from_bytes(hashlib.sha256(f"held out/{task_id}".encode()).digest()[:8]) / 2**64


def _balance_column(config: DataConfig, rows: list[Row]) -> str | None:
    if config.balance_column is not None:
        if config.balance_column in (config.prompt_column, config.answer_column, config.id_column):
            raise ValueError(f"data.balance_column={config.balance_column}: expected none of prompt, answer and id")
        for row in rows:
            column(row, config.balance_column, "data.balance_column")
        return config.balance_column
    return "kind" if config.path == EMBEDDED else None
