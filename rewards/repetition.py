"""Reward functions that find repetition: of n-grams anywhere (repetition), of a block at the end (degenerate)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

from funicular.rewards.messages import texts_of

_WINDOW = 8192
"""Characters at the end of a text in which a loop is looked for: keeps the search to milliseconds."""


def repetition(
    completions: list[Any],
    completion_ids: list[list[int]],
    *,
    ngram: int = 3,
    max_penalty: float = -1.0,
    unit: Literal["words", "tokens"] = "words",
    **_: Any,
) -> list[float | None]:
    """max_penalty * (1 - distinct n-grams / all n-grams): 0 where none occurs twice, near max_penalty in a loop.

    Texts shorter than an n-gram get 0. Words are lower case, between white space; `tokens` suits languages
    without spaces.

    Source: Demystifying Long Chain-of-Thought Reasoning, appendix C.2 (arXiv 2502.03373).
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram={ngram}, expected at least 1")
    if not -float("inf") < max_penalty <= 0:
        raise ValueError(f"repetition: max_penalty={max_penalty}, expected a finite number of at most 0")
    if unit not in ("words", "tokens"):
        raise ValueError(f"repetition: unit={unit!r}, expected words or tokens")
    if unit == "tokens":
        return [max_penalty * _repeated(ids, ngram) or 0.0 for ids in completion_ids]
    return [max_penalty * _repeated(text.lower().split(), ngram) or 0.0 for text in texts_of(completions)]


def degenerate(completions: list[Any], *, repeats: int = 4, min_length: int = 100, **_: Any) -> list[float | None]:
    """1.0 if the text ends in a loop, else 0.0; give it a negative weight.

    A loop is one block of characters at least `repeats` times in a row, `min_length` characters or more in all;
    the last block may be cut off. White space at the end does not count. A block that changes a little each time,
    such as one with a counter, is no loop: `repetition` sees that.
    """
    if repeats < 2 or min_length < 1:
        raise ValueError(
            f"degenerate: repeats={repeats}, min_length={min_length}; expected at least 2 repeats, 1 character"
        )
    return [1.0 if _ends_in_a_loop(text, repeats, min_length) else 0.0 for text in texts_of(completions)]


def _repeated(items: Sequence[Hashable], ngram: int) -> float:
    total = len(items) - ngram + 1
    if total < 1:
        return 0.0
    distinct = {tuple(items[start : start + ngram]) for start in range(total)}
    return 1.0 - len(distinct) / total


def _ends_in_a_loop(text: str, repeats: int, min_length: int) -> bool:
    backwards = text.rstrip()[: -_WINDOW - 1 : -1]
    matches = _prefix_matches(backwards)
    for period in range(1, len(backwards) // (repeats - 1) + 1):
        # matches[p]: how far the text read backwards agrees with itself shifted by p: the loop is p longer than that.
        looping = period + matches[period] if period < len(backwards) else 0
        if looping >= max((repeats - 1) * period, min_length):
            block = backwards[:period]
            between = len(block) - len(block.rstrip())  # white space between blocks; none follows the last one
            if looping >= repeats * period - between:
                return True
    return False


def _prefix_matches(text: str) -> list[int]:
    """For each start, how many characters from there agree with the text's beginning (the Z-function); linear."""
    matches = [0] * len(text)
    left = right = 0
    for start in range(1, len(text)):
        size = min(right - start, matches[start - left]) if start < right else 0
        while start + size < len(text) and text[size] == text[start + size]:
            size += 1
        matches[start] = size
        if start + size > right:
            left, right = start, start + size
    return matches
