"""From a recipe's section `data` to training tasks and held-out tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from funicular.launch.config import DataConfig
from funicular.launch.contamination import contaminated
from funicular.launch.datasets import DataError, Row, column, read_rows
from funicular.launch.task_mapping import Candidate, TaskMapping
from funicular.launch.task_order import TaskIterator
from funicular.launch.task_sets import MADE_BY_RULE
from funicular.rewards.types import Task
from funicular.rewards.verifiers import check_verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read and what was left out, for the terminal and the run's parameters."""

    train_rows: int
    held_out_rows: int
    """0 where the held-out tasks were taken from the training rows."""
    duplicates_removed: int
    """Rows whose prompt had occurred before in the same set."""
    contaminated: tuple[str, ...]
    """task_id of each held-out task that the training data gives away; dropped unless
    data.contamination=allow."""


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

    def evaluation_tasks(self, count: int) -> tuple[Task, ...]:
        """The held-out tasks of every evaluation: `count` at most, the balance column's values in turn."""
        return self.some_of(self.held_out, count)

    def health_tasks(self, count: int) -> tuple[Task, ...]:
        """`count` at most of all tasks, for the check of the verifier's health, chosen as those of evaluations are."""
        return self.some_of((*self.train, *self.held_out), count)

    def some_of(self, tasks: Iterable[Task], count: int) -> tuple[Task, ...]:
        """`count` of these tasks at most, the balance column's values in turn; always the same ones."""
        by_value: dict[str, list[Task]] = {}
        for task in sorted(tasks, key=lambda task: _fraction_of(task.task_id)):
            value = "" if self.balance_column is None else str(task.columns[self.balance_column])
            by_value.setdefault(value, []).append(task)
        rounds = zip_longest(*(by_value[value] for value in sorted(by_value)))
        return tuple(task for turn in rounds for task in turn if task is not None)[:count]


def load_tasks(
    config: DataConfig, verifier: str, seed: int, *, verifier_options: Mapping[str, Any] | None = None
) -> TaskSet:
    """Read, map and split the data.

    Args:
        verifier: name, put on every task; reference answers and tests are checked against what it can use.
        seed: of sets made by rule only.
        verifier_options: `reward.verifier_options`.

    Raises:
        DataError: unreadable data, a missing column, an answer that does not match; names key, file and row.
        ValueError: an impossible combination of keys, or an unknown verifier.
    """
    check_verifier(verifier)
    if not 0 <= config.held_out_fraction < 1:
        raise ValueError(f"data.held_out_fraction={config.held_out_fraction}: expected 0 or more, below 1")
    mapping = TaskMapping(config, verifier, verifier_options)
    rows = _training_rows(config, seed)
    train, removed = _unique([mapping.candidate(row) for row in rows])
    held_out_rows = _held_out_rows(config)
    if held_out_rows:
        held_out, removed_there = _unique([mapping.candidate(row) for row in held_out_rows])
        removed += removed_there
    else:
        held_out = [c for c in train if _fraction_of(c.task.task_id) < config.held_out_fraction]
        train = [c for c in train if _fraction_of(c.task.task_id) >= config.held_out_fraction]
    if not train:
        raise DataError(f"data.held_out_fraction={config.held_out_fraction}: no training task is left")
    _check_completions(train, config)
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


def _check_completions(train: list[Candidate], config: DataConfig) -> None:
    name = config.completion_column
    missing = [candidate.place for candidate in train if candidate.task.completion is None]
    if name is not None and missing:
        raise DataError(
            f"data.completion_column={name}: {len(missing)} of {len(train)} training tasks have no text there; the "
            f"first: {missing[0]}"
        )


def _training_rows(config: DataConfig, seed: int) -> list[Row]:
    if config.path in MADE_BY_RULE:
        made = MADE_BY_RULE[config.path].rows(config, seed)
        return [Row(place=f"{config.path} row {n}", values=values) for n, values in enumerate(made, start=1)]
    return read_rows(config.path, subset=config.subset, split=config.split, key="data.path", made_by_rule=MADE_BY_RULE)


def _held_out_rows(config: DataConfig) -> list[Row]:
    """Rows of the path or split that holds out; none where a part of the training data does."""
    if config.held_out_path is None and config.held_out_split is None:
        return []
    if config.held_out_path is None and Path(config.path).expanduser().is_file():
        return []  # a file has no splits, so a part of it is held out
    path = config.held_out_path or config.path
    key = "data.held_out_path" if config.held_out_path else "data.held_out_split"
    if path in MADE_BY_RULE:
        raise ValueError(f"{key}: a set made by rule holds out data.held_out_fraction of its tasks; leave it null")
    return read_rows(path, subset=config.subset, split=config.held_out_split or config.split, key=key)


def _unique(candidates: list[Candidate]) -> tuple[list[Candidate], int]:
    """Candidates without those whose prompt stood there before, and how many those were."""
    by_text: dict[tuple[str, tuple[str, ...]], Candidate] = {}
    by_id: dict[str, Candidate] = {}
    for candidate in candidates:
        asked = (candidate.text, candidate.images)
        if asked in by_text:
            continue
        by_text[asked] = candidate
        other = by_id.setdefault(candidate.task.task_id, candidate)
        if other is not candidate:
            raise DataError(
                f"data.id_column: {other.place} and {candidate.place} have different prompts and the same id "
                f"{candidate.task.task_id!r}"
            )
    return list(by_text.values()), len(candidates) - len(by_text)


def _decontaminate(
    train: list[Candidate], held_out: list[Candidate], config: DataConfig
) -> tuple[list[Candidate], list[Candidate]]:
    """The held-out candidates to keep, and those that the training data gives away."""
    found = _in_both(train, held_out)
    given_away = [held_out[i] for i in sorted(found)]
    if config.contamination == "allow" or not given_away:
        return held_out, given_away
    if config.contamination == "error":
        raise DataError(
            f"data.contamination=error: {len(given_away)} held-out tasks stand in the training data or share "
            f"13 words in a row with it; the first: {given_away[0].place}"
        )
    kept = [c for i, c in enumerate(held_out) if i not in found]
    if not kept:
        raise DataError(
            f"all {len(held_out)} held-out tasks share 13 words in a row with the training data: probably a "
            "text around every prompt, which belongs in data.prompt_template; or set data.contamination=allow"
        )
    return kept, given_away


def _in_both(train: list[Candidate], held_out: list[Candidate]) -> set[int]:
    """Indexes of the held-out candidates that the training data gives away. Of those with images only such as have the
    same ones: there the question is often the same for all."""
    found: set[int] = set()
    for images in {candidate.images for candidate in held_out}:
        indexes = [i for i, candidate in enumerate(held_out) if candidate.images == images]
        texts = (candidate.text for candidate in train if candidate.images == images)
        found |= {indexes[i] for i in contaminated(texts, [held_out[i].text for i in indexes])}
    return found


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
    return MADE_BY_RULE[config.path].balance_column if config.path in MADE_BY_RULE else None
