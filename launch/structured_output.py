"""What a task says of the form of its completions: `data.structured_output_column`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from funicular.rewards.nearest import did_you_mean

KINDS = ("json_schema", "regex", "choice", "grammar")
EXPECTED = f"a map with one of {', '.join(KINDS)}, as JSON if it is text; or nothing"


def structured_output(value: Any) -> Mapping[str, Any] | None:
    """The checked value of a row; None where the row leaves the form free.

    Raises:
        ValueError: it is no map with exactly one kind, or that kind's value cannot be used.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error}); expected {EXPECTED}") from None
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"expected {EXPECTED}")
    given = {kind: content for kind, content in value.items() if content is not None}  # Parquet has all of them
    if len(given) != 1:
        raise ValueError(f"names {', '.join(given) or 'none'}; expected {EXPECTED}")
    ((kind, content),) = given.items()
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind}; expected {EXPECTED}. {did_you_mean(kind, KINDS)}".strip())
    return {kind: _checked(kind, content)}


def _checked(kind: str, content: Any) -> Any:
    if kind == "choice":
        if not isinstance(content, list) or not content or not all(isinstance(one, str) and one for one in content):
            raise ValueError("choice: expected a list of texts")
        return list(content)
    if kind == "json_schema":
        schema = json.loads(content) if isinstance(content, str) else content
        if not isinstance(schema, Mapping):
            raise ValueError("json_schema: expected a map, or its JSON")
        return schema
    if not isinstance(content, str) or not content:
        raise ValueError(f"{kind}: expected text")
    return content
