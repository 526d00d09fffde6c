"""Held-out tasks that the training data gives away: the same text, or 13 words in a row in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

WORDS_IN_A_ROW = 13
_WORD = re.compile(r"\w+")


def contaminated(training: Iterable[str], held_out: Sequence[str]) -> list[int]:
    """Indexes of the held-out texts that share a 13-gram of words with a training text, in order.

    Words are lower-cased, without punctuation. A text of fewer than 13 words is compared as a whole,
    punctuation included, since there an operator may be all the difference (5 + 3, 5 - 3).
    """
    # The held-out side is indexed, as the smaller: memory does not grow with the training data.
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(held_out):
        for gram in _grams(text):
            holders.setdefault(gram, []).append(index)
    found: set[int] = set()
    for text in training:
        for gram in _grams(text):
            found.update(holders.get(gram, ()))
    return sorted(found)


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if len(words) < WORDS_IN_A_ROW:
        yield tuple(text.lower().split())
        return
    for start in range(len(words) - WORDS_IN_A_ROW + 1):
        yield tuple(words[start : start + WORDS_IN_A_ROW])
