"""Regular expressions as a verifier (regex) and as a reward function (regex_match).

The expression is the user's. One that backtracks without end on some text is stopped by the time limit, and that
text scores 0: prefer classes such as `[^<]*` to nested quantifiers such as `(a+)+`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from funicular.rewards.messages import texts_of
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of

ANSWER = "{answer}"
"""Stands in option `pattern` for the reference answer, taken literally."""


def regex(task: Task, text: str, *, pattern: str | None = None, full: bool = False) -> Verification:
    """Correct if the pattern matches somewhere in the text.

    Args:
        pattern: `{answer}` in it stands for the reference answer, literally. None: the reference is the pattern.
        full: the pattern must match the whole text, up to white space around it.

    Raises:
        ValueError: no regular expression, or one that matches an empty text, or there is no reference for it.
    """
    expression = reference_of(task, "regex") if pattern is None or ANSWER in pattern else ""
    if pattern is not None:
        expression = pattern.replace(ANSWER, re.escape(expression))
    compiled = _compiled(expression, "regex")
    search = compiled.fullmatch if full else compiled.search
    if search(""):
        raise ValueError(f"regex: {expression!r} matches an empty text, which must never be correct")
    match = search(text.strip() if full else text)
    return found(match.group() if match else None, correct=match is not None)


def regex_match(
    completions: list[Any], *, pattern: str, full: bool = False, count: int | None = None, **_: Any
) -> list[float | None]:
    """1.0 if the pattern matches somewhere in the text, else 0.0.

    Args:
        full: it must match the whole text, up to white space around it.
        count: exactly so many matches that do not overlap; 0: none. Not together with `full`.
    """
    compiled = _compiled(pattern, "regex_match")
    if count is not None and (full or count < 0):
        raise ValueError(f"regex_match: count={count}, full={full}; expected a count of at least 0, without full")
    return [1.0 if _matches(compiled, text, full, count) else 0.0 for text in texts_of(completions)]


def _matches(compiled: re.Pattern[str], text: str, full: bool, count: int | None) -> bool:
    if full:
        return compiled.fullmatch(text.strip()) is not None
    if count is None:
        return compiled.search(text) is not None
    return sum(1 for _ in compiled.finditer(text)) == count


@lru_cache(maxsize=1024)
def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"{name}: pattern={pattern!r}, expected a regular expression")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: pattern={pattern!r} is no regular expression: {error}") from None
