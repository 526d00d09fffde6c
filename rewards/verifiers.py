"""The verifiers by name, and what is done with them before a run: checks of names and tasks, slow imports.

Each is described where it is imported from; `docs/rewards.md` has them all with examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from funicular.rewards import reasoning_gym
from funicular.rewards.choice import choice
from funicular.rewards.equivalence import warm_up
from funicular.rewards.json_data import json_equal
from funicular.rewards.mathematics import boxed, math
from funicular.rewards.nearest import known_names
from funicular.rewards.needle import needle
from funicular.rewards.numeric import as_number, exact_number, gsm8k, last_number, number
from funicular.rewards.pattern import regex
from funicular.rewards.plain_text import exact_text, normalised_text
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, Verifier

__all__ = [
    "SANDBOXED",
    "VERIFIERS",
    "Verification",
    "Verifier",
    "as_number",
    "check_task",
    "check_verifier",
    "last_number",
    "prepare",
]

VERIFIERS: dict[str, Verifier] = {
    "exact_number": exact_number,
    "number": number,
    "gsm8k": gsm8k,
    "math": math,
    "boxed": boxed,
    "exact_text": exact_text,
    "normalised_text": normalised_text,
    "choice": choice,
    "json": json_equal,
    "regex": regex,
    "needle": needle,
    "reasoning_gym": reasoning_gym.reasoning_gym,
}
SANDBOXED = frozenset({"code"})
"""Verifiers that the scorer's trusted side calls with a judge, never the child (`funicular.rewards.code`)."""
_SLOW: dict[str, Callable[[], None]] = {"math": warm_up, "boxed": warm_up, "reasoning_gym": reasoning_gym.prepare}


def check_verifier(name: str) -> None:
    """Raises ValueError for a name that is in neither VERIFIERS nor SANDBOXED."""
    known = {*VERIFIERS, *SANDBOXED}
    if name not in known:
        raise ValueError(f"reward.verifier={name}: no such verifier; {known_names(name, known)}")


def check_task(task: Task, options: Mapping[str, Any] | None = None) -> None:
    """Check that the task's verifier can use its reference answer or tests. Cheap: loads no math-verify, runs no code.

    Args:
        options: `reward.verifier_options`.

    Raises:
        ValueError: it can not, or a value among the options is impossible.
    """
    if task.verifier in SANDBOXED:
        from funicular.rewards.code import check_tests

        check_tests(task, **(options or {}))
    else:
        VERIFIERS[task.verifier](task, "", **(options or {}))


def prepare(verifier: str) -> None:
    """Do the verifier's slow imports now, outside the limits of completions and before the process forks.

    Raises:
        ValueError: a package that it needs is not installed.
    """
    if verifier in _SLOW:
        _SLOW[verifier]()
