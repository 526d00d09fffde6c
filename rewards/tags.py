"""XML-like tags in texts: what stands in them, and the reward function format_tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from funicular.rewards.messages import texts_of

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def last_tagged(text: str, tag: str) -> str | None:
    """What stands between the last closing tag and the opening tag before it. None: there is no such pair.

    Raises:
        ValueError: the tag is no name.
    """
    _check(tag)
    before, closing, _ = text.rpartition(f"</{tag}>")
    _, opening, inside = before.rpartition(f"<{tag}>")
    return inside if closing and opening else None


def within(text: str, tag: str | None) -> str:
    """What a verifier's option `tag` asks it to read: the last tagged part, or the whole text without a tag.

    A text that lacks the tag has nothing to read.
    """
    return text if tag is None else last_tagged(text, tag) or ""


def format_tags(
    completions: list[Any],
    *,
    tags: Sequence[str] = ("think", "answer"),
    strict: bool = True,
    opened: bool = False,
    **_: Any,
) -> list[float | None]:
    """1.0 if the text has one block per tag, `<think>...</think><answer>...</answer>`, in order, none of them blank.

    Every tag must occur exactly once, so that a second answer cannot hide in the first block.

    Args:
        strict: nothing but white space stands outside the blocks; False: any text may.
        opened: the prompt already ends with the first opening tag.
    """
    if isinstance(tags, str) or not tags or len(set(tags)) != len(tags):
        raise ValueError(f"format_tags: tags={tags!r}, expected a list of different names, such as [think, answer]")
    for tag in tags:
        _check(tag)
    prefix = f"<{tags[0]}>" if opened else ""
    return [1.0 if _formed(prefix + text, tags, strict) else 0.0 for text in texts_of(completions)]


def _formed(text: str, tags: Sequence[str], strict: bool) -> bool:
    outside = []
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
    for tag in tags:
        before, opening, text = text.partition(f"<{tag}>")
        inside, closing, text = text.partition(f"</{tag}>")
        if not opening or not closing or not inside.strip():
            return False
        outside.append(before)
    return not strict or not any(part.strip() for part in (*outside, text))


def _check(tag: str) -> None:
    if not isinstance(tag, str) or not _NAME.fullmatch(tag):
        raise ValueError(f"tag {tag!r}: expected a name without brackets, such as answer")
