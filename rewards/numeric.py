"""Numbers in texts, and the verifiers that compare them: exact_number, number, gsm8k."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Context, Decimal, localcontext

from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of
from funicular.rewards.words import last_match

# A sign counts only where it cannot be a minus between two terms: 12-5 ends in 5, (-5) in -5.
_PLAIN = (
    r"(?:(?<![0-9A-Za-z)\]])[-+−])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
)
_NUMBER = re.compile(_PLAIN)
# 1.5e-3, 1.5 × 10^-3, 1.5 \times 10^{-3}. Four digits: no double is larger, and Decimal stays cheap.
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>{_PLAIN})"
    r"(?:[eE](?P<e>[-+−]?[0-9]{1,4})(?![0-9])|\s?(?:×|\*|x|\\times|\\cdot)\s?10\^\{?(?P<power>[-+−]?[0-9]{1,4})(?![0-9]))?"
)
GSM8K_MARK = "####"
_QUIET = Context(prec=60, traps=[])
"""Overflow gives infinity here, not an exception: a model's number must not look like our fault."""


def last_number(text: str) -> Decimal | None:
    """The last number in the text: 1,234.5, -3, .5; a trailing full stop is no part of it. None: no number."""
    numbers = _NUMBER.findall(text)
    return _to_decimal(numbers[-1]) if numbers else None


def as_number(text: str) -> Decimal | None:
    """The number that the whole text is, up to spaces, a currency sign and a trailing full stop; else None."""
    stripped = _bare(text)
    return _to_decimal(stripped) if _NUMBER.fullmatch(stripped) else None


def exact_number(task: Task, text: str) -> Verification:
    """Correct if the last number in the text equals the reference answer, exactly and as numbers (25 = 25.0).

    Raises:
        ValueError: the reference answer is no number.
    """
    reference = _as_reference(as_number, reference_of(task, "exact_number"), "exact_number")
    value = last_number(text)
    return found(value, correct=value == reference)


def number(
    task: Task, text: str, *, abs_tolerance: float = 0.0, rel_tolerance: float = 1e-9, tag: str | None = None
) -> Verification:
    """Correct if the last number lies within max(abs_tolerance, rel_tolerance * |reference|) of the reference.

    Reads scientific notation as well: 1.5e-3, 1.5 × 10^-3, 1.5 \\times 10^{-3}.

    Args:
        tag: read the number from the last <tag>...</tag> only.

    Raises:
        ValueError: the reference answer is no number, or a tolerance is negative.
    """
    for name, tolerance in (("abs_tolerance", abs_tolerance), ("rel_tolerance", rel_tolerance)):
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"number: {name}={tolerance}, expected a finite number of at least 0")
    reference = _as_reference(_as_scientific, reference_of(task, "number"), "number")
    last = last_match(_SCIENTIFIC, within(text, tag))
    if last is None:
        return found(None, correct=False)
    with localcontext(_QUIET):
        value = _scaled(last)
        allowed = max(Decimal(repr(abs_tolerance)), Decimal(repr(rel_tolerance)) * abs(reference))
        return found(value, correct=abs(value - reference) <= allowed)


def gsm8k(task: Task, text: str) -> Verification:
    """Correct if the number after the last `####` equals the reference answer.

    A text without `####`, or without a number after it, is not correct: the mark is part of what is asked.
    The reference may be the number alone or GSM8K's whole solution, which ends in `#### number`.

    Raises:
        ValueError: the reference has no number.
    """
    reference = _as_reference(as_number, reference_of(task, "gsm8k").rpartition(GSM8K_MARK)[2], "gsm8k")
    _, mark, tail = text.rpartition(GSM8K_MARK)
    first = _NUMBER.search(tail) if mark else None
    value = _to_decimal(first.group()) if first else None
    return found(value, correct=value == reference)


def _bare(text: str) -> str:
    return text.strip().lstrip("$").strip().removesuffix(".")


def _as_scientific(text: str) -> Decimal | None:
    match = _SCIENTIFIC.fullmatch(_bare(text).removesuffix("}"))
    return _scaled(match) if match else None


def _scaled(match: re.Match[str]) -> Decimal:
    exponent = (match["e"] or match["power"] or "0").replace("−", "-")
    return _to_decimal(match["mantissa"]).scaleb(int(exponent))


def _to_decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", "").replace("−", "-"))


def _as_reference(read: Callable[[str], Decimal | None], answer: str, verifier: str) -> Decimal:
    value = read(answer)
    if value is None:
        raise ValueError(
            f"{verifier}: the reference answer {answer[-80:]!r} is not a number; "
            "cut it out with data.answer_pattern, or use the verifier math"
        )
    return value
