r"""Five graded reward functions for GSM8K with XML answers, known from many public GRPO examples.

They ask for `<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>` and together give at most 4. Written
anew, with one deliberate difference to the versions in circulation: text between tags may span lines.
"""

from __future__ import annotations

import re
from typing import Any

from funicular.rewards.messages import texts_of
from funicular.rewards.numeric import as_number
from funicular.rewards.tags import last_tagged

_STRICT_OPENING, _STRICT_MIDDLE, _STRICT_CLOSING = "<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>"
_SOFT_MIDDLE = re.compile(r"</reasoning>\s*<answer>")
_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def gsm8k_correctness(completions: list[Any], answer: list[str | None], **_: Any) -> list[float | None]:
    """2.0 if the text in the last <answer> tag equals the reference, as a number or else as text; 0.0
    otherwise."""
    return [
        2.0 if reference is not None and _same(_tagged_answer(text), reference) else 0.0
        for text, reference in zip(texts_of(completions), answer, strict=True)
    ]


def gsm8k_integer(completions: list[Any], **_: Any) -> list[float | None]:
    """0.5 if the text in the last <answer> tag is an integer."""
    return [0.5 if re.fullmatch(r"-?[0-9]+", _tagged_answer(text)) else 0.0 for text in texts_of(completions)]


def gsm8k_strict_format(completions: list[Any], **_: Any) -> list[float | None]:
    """0.5 if the whole text is the two tagged blocks, every tag on a line of its own."""
    return [0.5 if _is_strict(text) else 0.0 for text in texts_of(completions)]


def gsm8k_soft_format(completions: list[Any], **_: Any) -> list[float | None]:
    """0.5 if the two tagged blocks stand anywhere in the text, in order."""
    return [0.5 if _is_soft(text) else 0.0 for text in texts_of(completions)]


def gsm8k_xml_count(completions: list[Any], **_: Any) -> list[float | None]:
    """0.125 for each of the four tags that occurs exactly once, less 0.001 per character after </answer>."""
    return [_xml_count(text) for text in texts_of(completions)]


def _is_strict(text: str) -> bool:
    body = text.removesuffix("\n")
    if not body.startswith(_STRICT_OPENING) or not body.endswith(_STRICT_CLOSING):
        return False
    return _STRICT_MIDDLE in body[len(_STRICT_OPENING) : -len(_STRICT_CLOSING)]


def _is_soft(text: str) -> bool:
    _, opening, after = text.partition("<reasoning>")
    before, closing, _ = after.rpartition("</answer>")
    return bool(opening and closing and _SOFT_MIDDLE.search(before))


def _xml_count(text: str) -> float:
    tags = sum(0.125 for tag in _TAGS if text.count(tag) == 1)
    _, closing, rest = text.rpartition("</answer>")
    return tags - 0.001 * len(rest.strip()) if closing else tags


def _tagged_answer(text: str) -> str:
    return (last_tagged(text, "answer") or "").strip()


def _same(found: str, reference: str) -> bool:
    number, expected = as_number(found), as_number(reference)
    if number is None or expected is None:
        return found == reference.strip()
    return number == expected
