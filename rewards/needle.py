"""Needle in a haystack: the hidden facts must stand in the answer, and the haystack must not."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from funicular.rewards.messages import texts_of
from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of
from funicular.rewards.words import contains, word_count

MAX_WORDS = 100
"""Longer answers are taken for copies of the haystack."""


def needles_of(answer: str) -> list[str]:
    """The needles that a reference answer names: a JSON list of texts, or one text.

    Raises:
        ValueError: a list that is empty or holds something else.
    """
    if not answer.lstrip().startswith("["):
        needles = [answer]
    else:
        try:
            needles = json.loads(answer)
        except ValueError:
            needles = [answer]  # a needle may begin with a bracket
    if not needles or not all(isinstance(needle, str) and needle.strip() for needle in needles):
        raise ValueError(
            f'needle: reference {answer[:80]!r}; expected text, or a JSON list of texts such as ["a", "b"]'
        )
    return [unicodedata.normalize("NFC", needle) for needle in needles]


def needle(
    task: Task, text: str, *, max_words: int = MAX_WORDS, ignore_case: bool = True, tag: str | None = None
) -> Verification:
    """Correct if every needle stands in the text as whole words, and the text has at most `max_words` words.

    Args:
        tag: read the last <tag>...</tag> only.

    Raises:
        ValueError: the reference names no needle, or an option is impossible.
    """
    _check(max_words)
    needles = needles_of(reference_of(task, "needle"))
    read = unicodedata.normalize("NFC", within(text, tag))
    missing = [one for one in needles if not contains(read, one, ignore_case=ignore_case)]
    words = word_count(read)
    verification = found(", ".join(one for one in needles if one not in missing) or None, correct=False)
    details = {**verification.details, "words": str(words)}
    return Verification(correct=not missing and words <= max_words, details=details)


def needle_found(
    completions: list[Any],
    answer: list[str | None],
    *,
    max_words: int = MAX_WORDS,
    ignore_case: bool = True,
    **_: Any,
) -> list[float | None]:
    """Share of the needles that stand in the text; 0.0 in more than `max_words` words; None without a reference."""
    _check(max_words)
    return [
        None if reference is None or not reference.strip() else _share(text, reference, max_words, ignore_case)
        for text, reference in zip(texts_of(completions), answer, strict=True)
    ]


def _share(text: str, reference: str, max_words: int, ignore_case: bool) -> float:
    needles = needles_of(reference.strip())
    if word_count(text) > max_words:
        return 0.0
    read = unicodedata.normalize("NFC", text)
    return sum(contains(read, one, ignore_case=ignore_case) for one in needles) / len(needles)


def _check(max_words: int) -> None:
    if max_words < 1:
        raise ValueError(f"needle: max_words={max_words}, expected at least 1")
