r"""Mathematical answers: the verifiers math and boxed.

Texts are compared as strings and integers first; only what differs there is parsed by math-verify, which brings
sympy. It has no time limit here: whoever calls kills the process.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any, Literal

from funicular.rewards.boxed import last_boxed
from funicular.rewards.equivalence import equivalent, read_expression, read_text, undelimited
from funicular.rewards.numeric import GSM8K_MARK, as_number
from funicular.rewards.plain_text import normalise
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of

_MOST_CHARACTERS = 1000
"""Of a final expression, or four times the reference if that is longer: nothing sensible is larger."""
_MOST_DEPTH = 50
"""Of brackets: 400 take the parser seven seconds."""
_TAIL_CHARACTERS = 4000
"""Of a text without a marked final answer, from its end, in whole lines."""
_SPACING = re.compile(r"\\[,!;: ]|\\(?:quad|qquad|left|right|displaystyle)(?![A-Za-z])|~|(?<!\w)\s+|\s+(?!\w)")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s?\{[^{}]*\}")
_POWER_OF_TEN = re.compile(r"(?:\\times|\\cdot|[×·*])\s*10\s*\^")
_OPERATION = re.compile(
    r"\\(?:int|i+nt|oint|sum|prod|lim|binom|pm|mp)(?![A-Za-z])"
    r"|[\w)}\]!]\s*(?:[-+*−×·]|\\(?:times|cdot|ast)(?![A-Za-z]))\s*[\w({\[\\.]"
)


def math(task: Task, text: str) -> Verification:
    r"""Correct if the text's final expression is equivalent to the reference, both LaTeX or plain.

    The final expression is the last `\boxed{...}` or, if that comes later, a last line `#### ...`; without either, what
    math-verify finds in the end of the text. Where the reference is a plain number, the expression must be worked
    out: `2+3` is not 5, since it may be the question.

    Raises:
        ValueError: math-verify cannot parse the reference.
    """
    reference = _reference(reference_of(task, "math"))
    claimed = final_expression(text)
    if claimed is not None:
        return _compare(reference, claimed, marked=True)
    return _compare(reference, _tail(text), marked=False)


def boxed(task: Task, text: str, *, compare: Literal["math", "text"] = "math") -> Verification:
    r"""Correct if the last `\boxed{...}` is the reference. A text without a box, or with an open one, is not correct.

    Args:
        compare: `math`: as the verifier math does; `text`: as normalised_text does.

    Raises:
        ValueError: there is no reference answer, math-verify cannot parse it, or `compare` is neither.
    """
    if compare not in ("math", "text"):
        raise ValueError(f"boxed: compare={compare!r}, expected math or text")
    reference = _reference(reference_of(task, "boxed"))
    expected = normalise(_without_text_commands(reference))
    if compare == "text" and not expected:
        raise ValueError(f"boxed: nothing is left of the reference {task.answer!r}; use compare: math")
    box = last_boxed(text)
    if box is None:
        return found(None, correct=False)
    if compare == "text":
        return found(box.content, correct=normalise(_without_text_commands(box.content)) == expected)
    return _compare(reference, box.content, marked=True)


def final_expression(text: str) -> str | None:
    r"""The last `\boxed{...}`, or a last line `#### ...` if that comes later. None: the text marks no answer."""
    box = last_boxed(text)
    last_line = text.rstrip().rpartition("\n")[2].strip()
    if last_line.startswith(GSM8K_MARK) and (box is None or box.start < text.rindex(last_line)):
        return last_line.removeprefix(GSM8K_MARK).strip()
    return None if box is None else box.content


def _compare(reference: str, claimed: str, *, marked: bool) -> Verification:
    """Args: marked: `claimed` is an expression; False: a text in which to look for one."""
    if not claimed.strip():
        return found(None, correct=False)
    left, right = _normal(reference), _normal(claimed)
    if left == right:
        return found(claimed, correct=True)
    expected, value = as_number(left), as_number(right)
    if expected is not None and value is not None and (expected == value or _whole(expected, value)):
        return found(claimed, correct=expected == value)
    if marked and (len(claimed) > max(_MOST_CHARACTERS, 4 * len(reference)) or _depth(claimed) > _MOST_DEPTH):
        return found(f"{claimed[:80]}... (too long or too deep: {len(claimed)} characters)", correct=False)
    reading = read_expression(claimed) if marked else read_text(claimed)
    shown = reading[-1] if reading else None
    if expected is not None and reading and _unfinished(str(reading[-1])):
        return found(shown, correct=False)
    return found(shown, correct=equivalent(reference, reading))


def _reference(answer: str) -> str:
    marked = final_expression(answer)
    return answer if marked is None else marked


def _normal(expression: str) -> str:
    """The expression without what is only typography."""
    plain = undelimited(expression).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace("{,}", ",")
    return _SPACING.sub("", plain).removesuffix(".")


def _whole(*values: Any) -> bool:
    return all(value == value.to_integral_value() for value in values)


def _depth(expression: str) -> int:
    """How deep the brackets are nested, whether or not they match."""
    steps = (1 if character in "([{" else -1 if character in ")]}" else 0 for character in expression)
    return max(accumulate(steps), default=0)


def _unfinished(expression: str) -> bool:
    """Whether an operation is left to be done in what stands after the last equals sign."""
    result = _TEXT.sub(" ", expression.rpartition("=")[2])
    return _OPERATION.search(_POWER_OF_TEN.sub("e", result)) is not None


def _without_text_commands(expression: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s?\{([^{}]*)\}", r"\1", undelimited(expression))


def _tail(text: str) -> str:
    if len(text) <= _TAIL_CHARACTERS:
        return text
    return text[-_TAIL_CHARACTERS:].partition("\n")[2] or text[-_TAIL_CHARACTERS:]
