"""Verifiers that compare texts as text: exact_text and normalised_text."""

from __future__ import annotations

import re
import string

from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# SQuAD removes all punctuation, so that -5 is 5 and 1.5 is 15. A sign and a decimal point stay here.
_PUNCTUATION = re.compile(rf"(?<![^\s$£€(])-(?=\.?[0-9])|(?<=[0-9])\.(?=[0-9])|([{re.escape(string.punctuation)}])")


def normalise(text: str) -> str:
    """As SQuAD compares answers: case, punctuation, the articles a, an, the, and white space do not count.

    Unlike there, a sign before a number and a decimal point do.
    Source: the evaluation script of SQuAD (arXiv 1606.05250).
    """
    lowered = text.casefold().replace("−", "-").replace("’", "'")
    bare = _PUNCTUATION.sub(lambda match: "" if match[1] else match[0], lowered)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_text(task: Task, text: str, *, tag: str | None = None) -> Verification:
    """Correct if the text is the reference answer, up to white space around both.

    Args:
        tag: compare the last <tag>...</tag> only; a text without it is not correct.

    Raises:
        ValueError: there is no reference answer, or `tag` is no name.
    """
    reference, claimed = reference_of(task, "exact_text"), within(text, tag).strip()
    return found(claimed or None, correct=claimed == reference)


def normalised_text(task: Task, text: str, *, tag: str | None = None) -> Verification:
    """Correct if the text is the reference answer once both are normalised (`normalise`).

    Args:
        tag: as for `exact_text`.

    Raises:
        ValueError: the reference has no more than articles and punctuation, or `tag` is no name.
    """
    reference = normalise(reference_of(task, "normalised_text"))
    if not reference:
        raise ValueError(f"normalised_text: nothing is left of the reference {task.answer!r}; use exact_text")
    claimed = normalise(within(text, tag))
    return found(claimed or None, correct=claimed == reference)
