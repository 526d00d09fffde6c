"""Reads a config by dotted key, and says what is wrong with the value there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from funicular.launch.config import Config
from funicular.launch.problems import Problem
from funicular.launch.yaml_nodes import show_value


def get(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def problem_at(config: Config, key: str, expected: str, nearest: str = "", *related: str) -> Problem:
    """A problem with the value of `key`, found by a rule that also read the keys `related`."""
    value = show_value(get(config, key))
    return Problem(key=key, value=value, expected=expected, nearest=nearest, related=related)


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """A question that names the nearest known value, or nothing."""
    near = get_close_matches(value, list(known), n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else ""
