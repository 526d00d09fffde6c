"""Helpers for tests that score groups with a real runner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from funicular.rewards.runner import FunctionRunner
from funicular.rewards.types import Task, Verdict

TASK = Task(task_id="t", prompt="Q", answer="5", verifier="exact_number")
Make = Callable[..., FunctionRunner]
"""Of the fixture `make`: functions and their weights, CPU seconds, and keys of section `reward`."""


def score(runner: FunctionRunner, texts: list[str], task: Task = TASK) -> tuple[list[Verdict], dict[str, str]]:
    """Score texts whose token counts are 1, 2, 3 and so on."""
    return runner.score(task, texts, [[1] * (i + 1) for i in range(len(texts))])


def rewards(verdicts: list[Verdict]) -> list[float | None]:
    """(G)"""
    return [verdict.reward for verdict in verdicts]


def statuses(verdicts: list[Verdict]) -> list[str]:
    """(G)"""
    return [str(verdict.status) for verdict in verdicts]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition holds before the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
