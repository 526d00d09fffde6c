"""JSON in texts: the verifier json compares it to the reference as data, json_schema validates its shape."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from funicular.rewards.columns import column_values
from funicular.rewards.messages import texts_of
from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of

_FENCE = "```"
_INFO = re.compile(r"[A-Za-z0-9_+.-]*[ \t\r]*")
_MOST_DEPTH = 100
_MOST_DIGITS = 300
"""Fewer than a double can hold: larger numbers make comparisons raise, or cost time."""


def json_in(text: str) -> str:
    """The contents of the last fenced block, or the whole text if there is no fence. Empty if the last block is
    open."""
    parts = text.split(_FENCE)
    if len(parts) == 1:
        return text.strip()
    if len(parts) % 2 == 0:
        return ""
    info, newline, body = parts[-2].partition("\n")
    fenced = body if newline and _INFO.fullmatch(info) else parts[-2]
    return fenced.strip()


def parse_json(text: str, *, parse_float: Callable[[str], Any] = float) -> Any:
    """Strict JSON: no NaN, no key twice in an object, depth at most 100, no number with more than 300 characters.

    Raises:
        ValueError: anything else; says what.
    """

    def limited(convert: Callable[[str], Any]) -> Callable[[str], Any]:
        def parse(digits: str) -> Any:
            if len(digits) > _MOST_DIGITS:
                raise ValueError(f"a number of {len(digits)} characters, expected at most {_MOST_DIGITS}")
            value = convert(digits)
            if value in (float("inf"), float("-inf")):
                raise ValueError(f"the number {digits} is out of range")
            return value

        return parse

    try:
        data = json.loads(
            text,
            parse_float=limited(parse_float),
            parse_int=limited(int),
            parse_constant=_no_constant,
            object_pairs_hook=_no_key_twice,
        )
    except RecursionError:
        raise ValueError(f"more than {_MOST_DEPTH} levels deep") from None
    _limit_depth(data)
    return data


def json_equal(task: Task, text: str, *, tag: str | None = None) -> Verification:
    """Correct if the JSON in the text (`json_in`) is the reference as data.

    Order of keys and white space do not count; order of lists does; 1 is 1.0 and is not true.

    Args:
        tag: look in the last <tag>...</tag> only.

    Raises:
        ValueError: the reference is no JSON.
    """
    answer = reference_of(task, "json")
    try:
        reference = _exact(answer)
    except ValueError as error:
        raise ValueError(f"json: the reference answer {answer[:80]!r} is no JSON: {error}") from None
    claimed = json_in(within(text, tag))
    try:
        data = parse_json(claimed, parse_float=_decimal)
    except ValueError as error:
        return Verification(correct=False, details={"extracted": "nothing", "json": str(error)[:200]})
    return found(claimed, correct=_same(data, reference))


def json_schema(
    completions: list[Any], *, schema: Mapping[str, Any] | None = None, column: str | None = None, **columns: Any
) -> list[float | None]:
    """1.0 if the JSON in the text (`json_in`) is valid against the schema, else 0.0. No partial credit.

    Args:
        schema: a JSON schema, draft 2020-12 unless its `$schema` says otherwise. `$ref` only within itself.
        column: or the dataset's column that holds each task's schema, as an object or as JSON text.
    """
    if schema is not None and column is None:
        _validator(json.dumps(schema))
        schemas = [json.dumps(schema)] * len(completions)
    elif column is not None and schema is None:
        schemas = [_as_text(one) for one in column_values(columns, column, "json_schema", len(completions))]
    else:
        raise ValueError(f"json_schema: schema={schema!r}, column={column!r}; expected exactly one of them")
    return [1.0 if _is_valid(text, shape) else 0.0 for text, shape in zip(texts_of(completions), schemas, strict=True)]


def prepare() -> None:
    """Import jsonschema, which takes 0.1 s."""
    _validator("true")


def _is_valid(text: str, schema: str) -> bool:
    validator = _validator(schema)
    try:
        data = parse_json(json_in(text))
    except ValueError:
        return False
    return validator.is_valid(data)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError, validators  # type: ignore[import-untyped]

    try:
        data = parse_json(schema)
    except ValueError as error:
        raise ValueError(f"json_schema: the schema {schema[:80]!r} is no JSON: {error}") from None
    kind = validators.validator_for(data, default=Draft202012Validator)
    try:
        kind.check_schema(data)
    except SchemaError as error:
        raise ValueError(f"json_schema: this is no JSON schema: {error.message[:200]} at {error.json_path}") from None
    _no_foreign_reference(data)
    return kind(data)


def _no_foreign_reference(schema: Any) -> None:
    """jsonschema would fetch what `$ref` names from the network."""
    target = schema.get("$ref") if isinstance(schema, dict) else None
    if isinstance(target, str) and not target.startswith("#"):
        raise ValueError(f"json_schema: $ref {target!r} leaves the schema; expected #/... within it")
    for child in _children(schema):
        _no_foreign_reference(child)


def _as_text(schema: Any) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema)


@lru_cache(maxsize=1024)
def _exact(text: str) -> Any:
    return parse_json(text, parse_float=_decimal)


def _decimal(digits: str) -> Decimal:
    mantissa, _, exponent = digits.lower().partition("e")
    if len(exponent) > 5:
        raise ValueError(f"the number {digits[:40]} is out of range")
    return Decimal(f"{mantissa}e{exponent or 0}")


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("an object has a key twice")
    return data


def _limit_depth(data: Any) -> None:
    level = [data]
    for _ in range(_MOST_DEPTH):
        level = [child for one in level for child in _children(one)]
        if not level:
            return
    raise ValueError(f"more than {_MOST_DEPTH} levels deep")


def _children(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return list(data.values())
    return data if isinstance(data, list) else []
