"""Finds out which format the tests of a dataset's row are in, and turns them into a TestSet.

| format | what the column holds |
| --- | --- |
| `stdio` | pairs of standard input and output |
| `apps` | `{"inputs", "outputs", "fn_name"?}`: APPS, TACO, PRIME; PrimeIntellect's lists are made into it |
| `livecodebench` | a list of `{"input", "output", "testtype"}`, or a row with its `*_test_cases` |
| `humaneval` | `{"test", "entry_point", "prompt"?}`, or the source of `check(candidate)` |
| `mbpp` | a list of assert statements, or `{"test_list", "test_setup_code"?, "test_imports"?}` |
| `unittest`, `pytest` | the source of a test file |

All but test code may be JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from funicular.rewards.nearest import known_names
from funicular.rewards.sandbox import format_testers
from funicular.rewards.sandbox.compare import EXACT
from funicular.rewards.sandbox.format_cases import from_apps, from_json, from_pairs, wrong
from funicular.rewards.sandbox.types import CallTests, Comparison, StdioTests, TesterStyle, TesterTests, TestSet

FORMATS = ("auto", "stdio", "apps", "livecodebench", "humaneval", "mbpp", "unittest", "pytest")
_KNOWN = "test cases, {'inputs', 'outputs'}, {'test', 'entry_point'}, a list of asserts, or the source of a test file"


def parse_tests(
    raw: Any,
    *,
    format: str = "auto",
    entry_point: str | None = None,
    prompt: str | None = None,
    setup: str | Sequence[str] | None = None,
    metadata: Any = None,
    comparison: Comparison = EXACT,
    same_process: bool = False,
    name: str = "tests",
) -> TestSet:
    """The tests of one task.

    Args:
        raw: what the row's column holds.
        format: one of FORMATS; auto: found out from what is there.
        entry_point: name of the candidate's function, for HumanEval tests that do not name it themselves.
        prompt: Python source put before HumanEval's test, whose helpers it may need.
        setup: source, or a list of imports, before MBPP's asserts.
        metadata: LiveCodeBench's, which names the function.
        comparison: of outputs; test code compares by itself.
        same_process: run test code and candidate in one process (Integrity.WEAK).
        name: of the column, for errors.

    Raises:
        ValueError: names the column, what was there and what was expected.
    """
    if format not in FORMATS:
        raise ValueError(f"{name}: format={format}: no such format; {known_names(format, FORMATS)}")
    value = _read(raw, format, name)
    if format == "auto":
        format = _format_of(value, name)
    if format in ("stdio", "apps", "livecodebench"):
        return _cases(value, format, metadata, comparison, name)
    if format == "humaneval":
        test, own_entry_point, own_prompt = value, None, None
        if isinstance(value, Mapping):
            test, own_entry_point, own_prompt = (value.get(key) for key in ("test", "entry_point", "prompt"))
        return format_testers.from_humaneval(
            name, test, own_entry_point or entry_point, own_prompt or prompt, same_process=same_process
        )
    if format == "mbpp":
        return _asserts(value, setup, same_process, name)
    return format_testers.from_source(name, TesterStyle(format), value, same_process=same_process)


def _read(raw: Any, format: str, name: str) -> Any:
    """The column's value; JSON text is read, test code stays text."""
    if not isinstance(raw, str) or format in ("unittest", "pytest"):
        return raw
    if not raw.strip():
        raise wrong(name, raw, _KNOWN)
    may_be_code = format in ("auto", "humaneval", "mbpp") and len(raw.split(maxsplit=1)) > 1
    if may_be_code and (raw.lstrip()[0] not in '[{"' or (format_testers.is_python(raw) and not _is_json(raw))):
        return raw
    return from_json(name, raw)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _format_of(value: Any, name: str) -> str:
    if isinstance(value, str):
        style = format_testers.style_of(name, value)
        return "mbpp" if style is TesterStyle.ASSERTS else style.value
    if isinstance(value, Mapping):
        for format, keys in (
            ("apps", {"inputs", "outputs"}),
            ("humaneval", {"test", "entry_point"}),
            ("mbpp", {"test_list"}),
        ):
            if keys <= value.keys():
                return format
        if "test_cases" in value:
            return "stdio"
        if "public_test_cases" in value or "private_test_cases" in value:
            return "livecodebench"
    if isinstance(value, Sequence) and not isinstance(value, bytes) and len(value):
        if all(isinstance(element, str) for element in value):
            return "mbpp"
        if all(isinstance(element, Mapping | Sequence) for element in value):
            return "stdio"
    raise wrong(name, value, _KNOWN)


def _cases(value: Any, format: str, metadata: Any, comparison: Comparison, name: str) -> StdioTests | CallTests:
    if isinstance(value, Mapping):
        if format != "livecodebench" and {"inputs", "outputs"} <= value.keys():
            return from_apps(name, value, comparison)
        metadata = metadata if metadata is not None else value.get("metadata")
        keys = [key for key in ("test_cases", "public_test_cases", "private_test_cases") if value.get(key)]
        pairs: list[Any] = []
        for key in keys:
            part = value[key]
            part = from_json(f"{name}.{key}", part) if isinstance(part, str) else part
            if not isinstance(part, Sequence):
                raise wrong(f"{name}.{key}", part, "a list of tests")
            pairs += part
        value = pairs if keys else value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong(name, value, "{'inputs', 'outputs'}, or a list of pairs of input and output")
    return from_pairs(name, value, comparison, metadata)


def _asserts(value: Any, setup: str | Sequence[str] | None, same_process: bool, name: str) -> TesterTests:
    if isinstance(value, Mapping):
        parts = (value.get("test_imports"), value.get("test_setup_code"), setup)
        setup = [part for part in map(_source, parts) if part]
        value = value.get("test_list")
    elif isinstance(value, str):
        value = format_testers.split_asserts(name, value)
    if not isinstance(value, Sequence):
        raise wrong(name, value, "a list of assert statements")
    return format_testers.from_asserts(name, value, _source(setup), same_process=same_process)


def _source(setup: str | Sequence[str] | None) -> str:
    return setup if isinstance(setup, str) else "\n".join(setup or ())
