"""A dataset's columns as reward functions read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from funicular.rewards.nearest import known_names


def column_values(columns: Mapping[str, Any], name: str, function: str, count: int) -> list[Any]:
    """(count) the column's value for each completion.

    Raises:
        ValueError: the dataset has no such column; says which is nearest.
    """
    if not count:  # options are checked without completions, and so without columns
        return []
    if name not in columns:
        raise ValueError(f"{function}: the data has no column {name!r}; {known_names(name, columns)}")
    return list(columns[name])
