import json
from typing import Any

import pytest

from funicular.rewards.functions import prepare
from funicular.rewards.json_data import json_equal, json_in, json_schema, parse_json
from funicular.rewards.types import Task

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def task(answer: str) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="json")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (' {"a": 1} ', '{"a": 1}'),
        ("Here:\n```json\n[1]\n```\nDone.", "[1]"),
        ("```\n[1]\n```\n```JSON\n[2]\n```", "[2]"),
        ("```[1]```", "[1]"),
        ("```json\n[1]", ""),
        ("```json\n[1]\n```\n```json\n[2", ""),
    ],
)
def test_the_last_whole_block_is_read_or_else_the_whole_text(text: str, found: str) -> None:
    assert json_in(text) == found


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}'),
        ("0.1", "0.10"),
        ("100", "1e2"),
        ('"é"', '"\\u00e9"'),
        ("[]", "```json\n[ ]\n```"),
    ],
)
def test_json_is_compared_as_data(reference: str, text: str) -> None:
    assert json_equal(task(reference), text).correct


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("[1, 2]", "[2, 1]"),
        ("1", "true"),
        ("0", "false"),
        ("[true]", "[1]"),
        ('"1"', "1"),
        ("null", "0"),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1}', '{"a": 2, "a": 1}'),
        ("[1]", "[1] [2]"),
        ("[1]", "It is [1]"),
        ("0.1", "0.10000000000000001"),
        ("1", "1e-99999999999999999999"),
        ("1", "NaN"),
        ("1e308", "Infinity"),
        ("[]", "[" * 100_000),
        ("[]", "[" * 500 + "]" * 500),
        ("1", "1" * 100_000),
        ("{}", '{"a":' * 20_000),
    ],
)
def test_other_data_and_what_is_no_json_is_not_correct(reference: str, text: str) -> None:
    assert not json_equal(task(reference), text).correct


def test_json_says_why_a_text_was_not_read() -> None:
    assert "a key twice" in json_equal(task("{}"), '{"a": 1, "a": 2}').details["json"]


def test_a_reference_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="is no JSON"):
        json_equal(task("{a: 1}"), "")


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, "1" * 301, "1e400", "[NaN]", '{"a": 1, "a": 1}', ""])
def test_strict_parsing_refuses_what_is_dangerous_to_compare(text: str) -> None:
    with pytest.raises(ValueError, match=r"deep|number|range|no JSON|twice|Expecting"):
        parse_json(text)


def test_a_schema_is_met_or_not() -> None:
    texts = [
        '{"name": "Ada", "age": 36}',
        '```json\n{"name": "Ada", "age": 36}\n```',
        '{"name": "Ada"}',
        '{"name": "", "age": 36}',
        '{"name": "Ada", "age": "36"}',
        '{"name": "Ada", "age": -1}',
        '{"name": "Ada", "age": 36, "x": 1}',
        "Ada is 36",
        '{"name": "Ada", "age": 3' + "6" * 400 + "}",
    ]
    assert json_schema(texts, schema=PERSON) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("text", ["1" + "0" * 299, "1e300", "[" * 99 + "]" * 99, '"' + "a" * 100_000 + '"', "-0.0"])
def test_extreme_values_are_valid_or_not_but_never_an_error(text: str) -> None:
    for schema in ({"multipleOf": 0.01}, {"type": "integer", "maximum": 5}, {"uniqueItems": True}, {"minLength": 5}):
        assert json_schema([text], schema=schema)[0] in (0.0, 1.0)


def test_a_recursive_schema_meets_deep_data() -> None:
    schema = {"type": "array", "items": {"$ref": "#"}}
    assert json_schema(["[" * 99 + "]" * 99, "[[1]]", "[" * 101 + "]" * 101], schema=schema) == [1.0, 0.0, 0.0]


def test_schemas_may_come_from_a_column() -> None:
    column = [PERSON, json.dumps({"type": "array"})]
    assert json_schema(["[]", "[]"], column="shape", shape=column) == [0.0, 1.0]
    with pytest.raises(ValueError, match="no column 'shapes'; nearest: shape"):
        json_schema(["[]"], column="shapes", shape=column)
    with pytest.raises(ValueError, match="the schema 'array' is no JSON"):
        json_schema(["[]"], column="shape", shape=["array"])


def test_a_schema_cannot_refer_to_another() -> None:
    for foreign in ({"$ref": "http://127.0.0.1:9/a.json"}, {"items": {"$ref": "a.json"}}):
        with pytest.raises(ValueError, match=r"\$ref .* leaves the schema"):
            json_schema([], schema=foreign)


@pytest.mark.parametrize("options", [{}, {"schema": PERSON, "column": "shape"}, {"schema": {"type": "objekt"}}])
def test_impossible_options_are_found_without_completions(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="json_schema"):
        json_schema([], **options)


def test_preparing_json_schema_imports_the_validator() -> None:
    prepare("json_schema")
    assert json_schema(["1"], schema={}) == [1.0]
