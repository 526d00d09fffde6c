"""The frame of an e-mail or letter: recipient (does the greeting name it?) and signature (does it end with one?)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from funicular.rewards.columns import column_values
from funicular.rewards.messages import texts_of
from funicular.rewards.words import contains

GREETINGS = ("Dear", "Hi", "Hello", "Hey", "Good morning", "Good afternoon", "Good evening")
CLOSINGS = (
    "Best", "Best regards", "Kind regards", "Warm regards", "Regards", "Best wishes", "Sincerely", "Yours sincerely",
    "Yours faithfully", "Yours truly", "Sincerely yours", "Respectfully", "Many thanks", "Thanks", "Thank you",
    "Cheers",
)  # fmt: skip
_TITLES = frozenset({"mr", "mrs", "ms", "miss", "mx", "dr", "prof", "professor", "sir", "madam"})
_MOST_NAME_WORDS = 5
_MOST_SIGNATURE_LINES = 4
_HEADER = re.compile(r"(?:subject|to|cc|bcc|from|date)\s*:", re.IGNORECASE)
_END_OF_NAME = re.compile(r"[,:;!]|\s[-–—]\s")
_A_NAME = re.compile(r"[^\W\d_][\w.'’-]*(?:\s[^\W\d_][\w.'’-]*){0,3}")
_PLACEHOLDER = re.compile(r"\byour (?:\w+ )?name\b", re.IGNORECASE)


def recipient(
    completions: list[Any], *, column: str = "recipient", greetings: Sequence[str] = GREETINGS, **columns: Any
) -> list[float | None]:
    """1.0 if the text opens with a greeting that names its recipient, else 0.0; None for tasks without one.

    The greeting is the first line, after lines such as `Subject:`, up to a comma, colon or exclamation mark. At most
    five words may name the recipient, so that a list of names does not count. One part of the name is enough:
    Hi Maria, Dear Ms Keller.

    Args:
        column: the dataset's column with the recipient's name.
        greetings: the words that a greeting may begin with.
    """
    _check_words("recipient", "greetings", greetings)
    names = column_values(columns, column, "recipient", len(completions))
    return [
        None if not name else 1.0 if _greets(text, str(name), greetings) else 0.0
        for text, name in zip(texts_of(completions), names, strict=True)
    ]


def signature(
    completions: list[Any],
    *,
    name: str | None = None,
    column: str | None = None,
    closings: Sequence[str] = CLOSINGS,
    **columns: Any,
) -> list[float | None]:
    """1.0 if the text ends with a closing line and a name below it, else 0.0; None for tasks without a sender.

    At most four lines may follow the closing. A placeholder such as `[Your Name]` is no name.

    Args:
        name: the sender's name; a part of it is enough.
        column: or the dataset's column that holds it. Neither: any one to four words that look like a name.
        closings: the words that the closing line may consist of.
    """
    if name is not None and column is not None:
        raise ValueError(f"signature: name={name!r}, column={column!r}; expected at most one of them")
    _check_words("signature", "closings", closings)
    texts = texts_of(completions)
    if column is None:
        return [1.0 if _signs(text, name, closings) else 0.0 for text in texts]
    names = column_values(columns, column, "signature", len(texts))
    return [
        None if not sender else 1.0 if _signs(text, str(sender), closings) else 0.0
        for text, sender in zip(texts, names, strict=True)
    ]


def _greets(text: str, name: str, greetings: Sequence[str]) -> bool:
    lines = [line for line in _lines(text) if not _HEADER.match(line)]
    for greeting in greetings:
        rest = _after(lines[0], greeting) if lines else None
        named = None if rest is None else _END_OF_NAME.split(rest.lstrip(" ,"), maxsplit=1)[0]
        if named and len(named.split()) <= _MOST_NAME_WORDS and any(contains(named, part) for part in _parts(name)):
            return True
    return False


def _signs(text: str, name: str | None, closings: Sequence[str]) -> bool:
    below = _below_closing(_lines(text)[-_MOST_SIGNATURE_LINES - 1 :], closings)
    if name is None:
        return bool(below) and _A_NAME.fullmatch(below[0]) is not None and not _PLACEHOLDER.search(below[0])
    return any(contains(line, part) for line in below for part in _parts(name))


def _below_closing(lines: Sequence[str], closings: Sequence[str]) -> list[str]:
    """What follows the last line that is a closing, the rest of that line included: `Best, Tom` closes and names."""
    for index in reversed(range(len(lines))):
        for closing in closings:
            rest = _after(lines[index], closing)
            if rest is not None and (not rest or rest[0] in ",.!"):
                return [line for line in (rest.strip(" ,.!"), *lines[index + 1 :]) if line]
    return []


def _after(line: str, words: str) -> str | None:
    """The rest of a line that begins with these words, as whole words; None: it does not."""
    rest = line[len(words) :]
    return rest if line.lower().startswith(words.lower()) and not rest[:1].isalnum() else None


def _parts(name: str) -> list[str]:
    """What of a name may stand for it: its words without titles and initials; all of it if nothing is left."""
    words = [word.strip(".,") for word in name.split()]
    return [word for word in words if len(word) > 1 and word.lower() not in _TITLES] or [name]


def _lines(text: str) -> list[str]:
    return [stripped for line in text.splitlines() if (stripped := line.strip().strip("*_").strip())]


def _check_words(function: str, option: str, words: Sequence[str]) -> None:
    if isinstance(words, str) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{function}: {option}={words!r}, expected a list of words")
