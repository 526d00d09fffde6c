"""Finds things in texts: words and phrases as wholes (`art` is not in `party`, `42` not in `1,420` or `42.5`), and
last matches."""

from __future__ import annotations

import re
from collections import deque
from functools import lru_cache

_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xD7FF), (0x20000, 0x3FFFF))
"""Scripts that put no spaces between words, or join endings: Thai, Khmer, Burmese, Chinese, Japanese, Korean."""
_CHARACTERS_PER_WORD = 8


def contains(text: str, phrase: str, *, ignore_case: bool = True) -> bool:
    """Whether the phrase stands in the text as whole words; any white space in it matches any other.

    Raises:
        ValueError: the phrase is blank.
    """
    pattern = _pattern(phrase, ignore_case)
    match = pattern.search(text)
    while match is not None:
        if _stands_alone(text, match):
            return True
        match = pattern.search(text, match.start() + 1)
    return False


def word_count(text: str) -> int:
    """Words, at least one per eight characters: text without spaces is not one word."""
    return max(len(text.split()), len(text) // _CHARACTERS_PER_WORD)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of the pattern's matches that do not overlap."""
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


@lru_cache(maxsize=4096)
def _pattern(phrase: str, ignore_case: bool) -> re.Pattern[str]:
    """The phrase alone: its neighbours are looked at in Python, since a look-around for them takes 17 ms to compile."""
    words = phrase.split()
    if not words:
        raise ValueError(f"{phrase!r} has no words; expected a word or phrase")
    return re.compile(r"\s+".join(re.escape(word) for word in words), re.IGNORECASE if ignore_case else 0)


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Neither a letter next to one of its own, nor a digit beyond a point or comma."""
    start, end = match.span()
    found, before, after = match.group(), text[max(0, start - 2) : start], text[end : end + 2]
    if (_joins(before[-1:]) and _joins(found[0])) or (_joins(found[-1]) and _joins(after[:1])):
        return False
    number_goes_on = after[:1] in (".", ",") and after[1:].isdecimal() and found[-1].isdecimal()
    number_began_before = before[1:] in (".", ",") and before[0].isdecimal() and found[0].isdecimal()
    return not (number_goes_on or number_began_before)


def _joins(character: str) -> bool:
    """A character that makes one word with a neighbour of its kind; the empty string is none."""
    if not (character.isalnum() or character == "_"):
        return False
    return not any(first <= ord(character) <= last for first, last in _UNSPACED)
