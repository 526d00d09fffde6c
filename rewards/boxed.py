r"""Finds the final answer in `\boxed{...}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from funicular.rewards.words import last_match

_OPENING = re.compile(r"\\f?box(?:ed)?\s?\{")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One `\\boxed{...}` of a text."""

    start: int
    """Where its backslash stands."""
    content: str


def last_boxed(text: str) -> Box | None:
    r"""The text's last `\boxed{...}` (or `\fbox`), with balanced braces; of nested boxes the innermost.

    None: there is no box, or the last one is never closed, as in a text that was cut off.
    """
    opening = last_match(_OPENING, text)
    if opening is None:
        return None
    depth, position = 1, opening.end()
    while position < len(text):
        if text[position] == "\\":
            position += 1  # \{ and \} are printed, not grouping
        elif text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if not depth:
                return Box(start=opening.start(), content=text[opening.end() : position].strip())
        position += 1
    return None
