"""What a verifier says, and how it asks for its reference answer.

A verifier is a pure function `(task, text, *, options) -> Verification`. It runs in the scorer's child process
(`funicular.rewards.child`), which is killed from outside when it takes too long; so none has a time limit of its
own. On an empty text each looks at its reference and options, raises ValueError for one that it could never use,
and else says not correct: that is how both are checked before a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from funicular.rewards.types import Status, Task

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verifier found."""

    correct: bool
    details: Mapping[str, str] = field(default_factory=dict)
    """For people and metrics: what was extracted, what the sandbox said. Copied into the verdict."""
    status: Status | None = None
    """Finer than `correct`: timeout or infra_error, from the sandbox. None: passed or failed, as `correct` says."""


Verifier = Callable[..., Verification]


def found(extracted: object | None, *, correct: bool) -> Verification:
    """A verification that shows what was extracted; None: nothing was."""
    shown = "nothing" if extracted is None else str(extracted)[:_SHOWN_CHARACTERS]
    return Verification(correct=correct, details={"extracted": shown})


def reference_of(task: Task, verifier: str) -> str:
    """The task's reference answer, without spaces around it.

    Raises:
        ValueError: there is none.
    """
    if task.answer is None or not task.answer.strip():
        raise ValueError(f"{verifier}: the task has no reference answer; set data.answer_column")
    return task.answer.strip()
