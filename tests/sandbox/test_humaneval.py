"""HumanEval as it is published: every reference solution passes, and none with its body taken out. Real slots."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.code import verify_code
from funicular.rewards.sandbox.types import Judgement, Limits, Program, TestSet
from funicular.rewards.types import Task
from tests.judge_slots import Slots, started_slots

FILE = Path(__file__).resolve().parents[2] / "../shared/data/humaneval/HumanEval.jsonl.gz"
COLUMNS = {"tests_column": "test", "entry_point_column": "entry_point", "prefix_column": "prompt"}
LIMITS = Limits(cpu_s=5.0)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    if not FILE.exists():
        pytest.skip("HumanEval.jsonl.gz is not in ../shared/data/humaneval beside the project")
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    yield from started_slots()


def failures(slots: Slots, rows: list[dict[str, Any]], body: str | None, *, whole: bool = False) -> list[str]:
    """Task ids that do not pass, with the reason; `body` instead of the reference's.

    Args:
        whole: hand in the whole function in a fence, as a chat model would, instead of its body alone.
    """

    def judge(programs: list[Program], tests: TestSet) -> list[Judgement]:
        return [slots.judge(program.source, tests, limits=LIMITS) for program in programs]

    failed = []
    for row in rows:
        text = row["canonical_solution"] if body is None else body
        if whole:
            text = f"Here it is:\n```python\n{row['prompt'].strip()}\n{text}\n```\n"
        task = Task(task_id=row["task_id"], prompt=row["prompt"], answer=None, verifier="code", columns=row)
        (found,) = verify_code(task, [text], judge, **COLUMNS)  # type: ignore[arg-type]
        if not found.correct:
            failed.append(f"{row['task_id']}: {found.details['outcome']}: {found.details['detail']}")
    return failed


def test_all_164_tasks_are_there(rows: list[dict[str, Any]]) -> None:
    assert len({row["task_id"] for row in rows}) == 164


def test_every_reference_solution_passes(rows: list[dict[str, Any]], slots: Slots) -> None:
    assert failures(slots, rows, None) == []


def test_every_reference_passes_as_a_chat_model_would_write_it(rows: list[dict[str, Any]], slots: Slots) -> None:
    assert failures(slots, rows[::8], None, whole=True) == []


def test_no_function_without_its_body_passes(rows: list[dict[str, Any]], slots: Slots) -> None:
    failed = failures(slots, rows, "    pass\n")
    assert len(failed) == len(rows)
    assert not [line for line in failed if "infra_error" in line]
