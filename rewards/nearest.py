"""The known name that a mistyped one probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def known_names(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name if one is close, then all of them."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    listing = f"expected one of {', '.join(names)}" if names else "there are none"
    return f"nearest: {close[0]}; {listing}" if close else listing


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the nearest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"Did you mean {close[0]}?" if close else ""
