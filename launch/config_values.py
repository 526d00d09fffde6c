"""Reads a config by dotted key, and says what is wrong with the value there."""

from __future__ import annotations

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
