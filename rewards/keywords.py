"""Reward function keywords: words and phrases that a text must, or must not, contain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from funicular.rewards.columns import column_values
from funicular.rewards.messages import texts_of
from funicular.rewards.words import contains


def keywords(
    completions: list[Any],
    *,
    required: Sequence[str] = (),
    forbidden: Sequence[str] = (),
    required_column: str | None = None,
    ignore_case: bool = True,
    **columns: Any,
) -> list[float | None]:
    """Share of the required words and phrases that occur, as whole words; 0.0 if a forbidden one does.

    With forbidden words only: 1.0 if none occurs.

    Args:
        required_column: the dataset's column with each task's own list of further required words.
    """
    for name, words in (("required", required), ("forbidden", forbidden)):
        if isinstance(words, str) or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"keywords: {name}={words!r}, expected a list of words, such as [refund, order number]")
    if not required and not forbidden and required_column is None:
        raise ValueError("keywords: nothing to look for; give required, forbidden or required_column")
    texts = texts_of(completions)
    own: list[Sequence[str]] = [()] * len(texts)
    if required_column is not None:
        own = [_listed(value) for value in column_values(columns, required_column, "keywords", len(texts))]
    return [_share(text, [*required, *more], forbidden, ignore_case) for text, more in zip(texts, own, strict=True)]


def _share(text: str, required: Sequence[str], forbidden: Sequence[str], ignore_case: bool) -> float:
    if any(contains(text, word, ignore_case=ignore_case) for word in forbidden):
        return 0.0
    if not required:
        return 1.0
    return sum(contains(text, word, ignore_case=ignore_case) for word in required) / len(required)


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else list(value or ())
