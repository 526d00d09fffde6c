"""What `funicular doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line."""

    what: str
    status: Literal["ok", "doubtful", "broken"]
    """broken: a run would fail, or would not be what the recipe says."""
    said: str
    fix: str = ""
    """What to do; of everything that is not ok."""


def ok(what: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(what=what, status="ok", said=said)


def broken(what: str, said: str, fix: str) -> Finding:
    """A run would fail."""
    return Finding(what=what, status="broken", said=said, fix=fix)


def doubtful(what: str, said: str, fix: str) -> Finding:
    """A run may go on, and suffer."""
    return Finding(what=what, status="doubtful", said=said, fix=fix)
