"""Reward functions made of what the verifier found, or of the reference answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from funicular.rewards.messages import texts_of
from funicular.rewards.numeric import as_number, last_number


def correctness(correct: list[bool], **_: Any) -> list[float | None]:
    """1.0 if the verifier says correct, else 0.0."""
    return [1.0 if value else 0.0 for value in correct]


def fraction_of_tests(details: list[Mapping[str, str]], **_: Any) -> list[float | None]:
    """Tests passed out of all, as the sandbox counted them for verifier `code`; None without its verdict.

    With early stop, the sandbox's default, the tests after the first failure count as not passed: set
    `sandbox.all_tests` to have all of them run.
    """
    return [_fraction(one) if "tests_total" in one else None for one in details]


def closeness(
    completions: list[Any], answer: list[str | None], *, tolerance: float = 1.0, **_: Any
) -> list[float | None]:
    """Graded by numeric distance: 1 at the reference, falling linearly to 0 at tolerance * max(1,
    |reference|) away.

    The completion's number is its last one; 0.0 without one. None where the reference is no number.
    """
    if tolerance <= 0:
        raise ValueError(f"closeness: tolerance={tolerance}, expected a number above 0")
    return [_closeness(text, ref, tolerance) for text, ref in zip(texts_of(completions), answer, strict=True)]


def _fraction(details: Mapping[str, str]) -> float:
    total = int(details["tests_total"])
    return int(details["tests_passed"]) / total if total else 0.0


def _closeness(text: str, reference: str | None, tolerance: float) -> float | None:
    expected = None if reference is None else as_number(reference)
    if expected is None:
        return None
    value = last_number(text)
    if value is None:
        return 0.0
    distance = abs(float(value) - float(expected)) / (tolerance * max(1.0, abs(float(expected))))
    return max(0.0, 1.0 - distance)
