"""Verifiers: pure functions that decide whether a completion's text solves its task.

They run in the scorer's child process (`funicular.rewards.child`), which is killed from outside when it takes
too long; so none of them has a time limit of its own. A verifier that runs code will stand here too: it hands
the text to the sandbox and reports the sandbox's finer outcome in `Verification.details`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from funicular.rewards.nearest import known_names
from funicular.rewards.types import Task

# A sign counts only where it cannot be a minus between two terms: 12-5 ends in 5, (-5) in -5.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]])[-+−])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
)
GSM8K_MARK = "####"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verifier found."""

    correct: bool
    details: Mapping[str, str] = field(default_factory=dict)
    """For people and metrics: what was extracted, what the sandbox said. Copied into the verdict."""


Verifier = Callable[[Task, str], Verification]


def last_number(text: str) -> Decimal | None:
    """The last number in the text: 1,234.5, -3, .5; a trailing full stop is no part of it. None: no
    number."""
    found = _NUMBER.findall(text)
    return _to_decimal(found[-1]) if found else None


def as_number(text: str) -> Decimal | None:
    """The number that the whole text is, up to spaces, a currency sign and a trailing full stop; else
    None."""
    stripped = text.strip().lstrip("$").strip().removesuffix(".")
    return _to_decimal(stripped) if _NUMBER.fullmatch(stripped) else None


def exact_number(task: Task, text: str) -> Verification:
    """Correct if the last number in the text equals the reference answer, exactly and as numbers (25 = 25.0).

    Raises:
        ValueError: the reference answer is no number.
    """
    reference = _reference_number(task.answer, "exact_number")
    found = last_number(text)
    return Verification(correct=found == reference, details={"extracted": _shown(found)})


def gsm8k(task: Task, text: str) -> Verification:
    """Correct if the number after the last `####` equals the reference answer.

    A text without `####`, or without a number after it, is not correct: the mark is part of what is asked.
    The reference may be the number alone or GSM8K's whole solution, which ends in `#### number`.

    Raises:
        ValueError: the reference has no number.
    """
    reference = _reference_number(_after_mark(task.answer), "gsm8k")
    tail = _after_mark(text) if GSM8K_MARK in text else ""
    first = _NUMBER.search(tail or "")
    found = _to_decimal(first.group()) if first else None
    return Verification(correct=found == reference, details={"extracted": _shown(found)})


def math(task: Task, text: str) -> Verification:
    """Correct if math-verify finds the text's final expression equivalent to the reference (LaTeX or plain).

    Raises:
        ValueError: math-verify cannot parse the reference.
    """
    # Imported here: it brings sympy. Its own time limits use SIGALRM, which fails silently off the main
    # thread.
    from math_verify import parse, verify

    _need_answer(task.answer, "math")
    # A string among the results is only the text again, not something that was parsed.
    readings = (parse(form, parsing_timeout=None) for form in (f"${task.answer}$", task.answer))
    reference = next((r for r in readings if any(not isinstance(part, str) for part in r)), None)
    if reference is None:
        raise ValueError(f"math: cannot parse the reference answer {task.answer!r}; expected LaTeX or a number")
    found = parse(text, parsing_timeout=None)
    correct = bool(found) and verify(reference, found, timeout_seconds=None)
    return Verification(correct=correct, details={"extracted": str(found[-1])[:200] if found else "nothing"})


VERIFIERS: dict[str, Verifier] = {"exact_number": exact_number, "gsm8k": gsm8k, "math": math}


def check_verifier(name: str) -> None:
    """Raises ValueError for a name that is not in VERIFIERS."""
    if name not in VERIFIERS:
        raise ValueError(f"reward.verifier={name}: no such verifier; {known_names(name, VERIFIERS)}")


def check_answer(verifier: str, answer: str | None) -> None:
    """Raises ValueError for a reference answer that this verifier could never use. Cheap: loads no
    math-verify."""
    _need_answer(answer, verifier)
    if verifier == "exact_number":
        _reference_number(answer, verifier)
    elif verifier == "gsm8k":
        _reference_number(_after_mark(answer), verifier)


def prepare(verifier: str) -> None:
    """Do the verifier's slow imports now, outside the time limits of completions."""
    if verifier == "math":
        # Once per process it warns that it has no time limit, which here is on purpose.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        math(Task(task_id="", prompt="", answer="1", verifier="math"), "$1$")


def _to_decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))


def _shown(number: Decimal | None) -> str:
    return "nothing" if number is None else str(number)


def _after_mark(text: str | None) -> str | None:
    return None if text is None else text.rpartition(GSM8K_MARK)[2]


def _need_answer(answer: str | None, verifier: str) -> None:
    if answer is None or not answer.strip():
        raise ValueError(f"{verifier}: the task has no reference answer; set data.answer_column")


def _reference_number(answer: str | None, verifier: str) -> Decimal:
    _need_answer(answer, verifier)
    number = as_number(answer or "")
    if number is None:
        raise ValueError(
            f"{verifier}: the reference answer {(answer or '')[-80:]!r} is not a number; "
            "cut it out with data.answer_pattern, or use the verifier math"
        )
    return number
