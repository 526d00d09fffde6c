"""Input/output pairs as datasets write them, turned into stdio and call tests.

Read here: APPS, TACO, PRIME and DeepCoder (`inputs`, `outputs`, `fn_name`), PrimeIntellect (a list of
`{"type", "input", "output", "fn_name"}`), LiveCodeBench (a list of `{"input", "output", "testtype"}`, the
function's name in `metadata`), and plain pairs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from funicular.rewards.sandbox.types import CallCase, CallTests, Comparison, StdioCase, StdioTests

_INPUT_KEYS = ("input", "stdin")
_OUTPUT_KEYS = ("output", "stdout", "expected_output")
_STDIO_TYPES = {"stdin", "stdin_stdout"}
_CALL_TYPES = {"functional", "function_call"}
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def wrong(name: str, found: Any, expected: str) -> ValueError:
    """The error for a row whose tests are not as expected: names the key, what was there, what was expected."""
    shown = f"keys {sorted(map(str, found))}" if isinstance(found, Mapping) else repr(found)
    return ValueError(f"{name}: got {type(found).__name__} {_cut(shown)}; expected {expected}")


def from_json(name: str, text: str) -> Any:
    """A column that holds JSON text, possibly JSON text of JSON text.

    Raises:
        ValueError: no JSON; for LiveCodeBench's encoded private tests says what to do.
    """
    value: Any = text
    while isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            if _is_compressed(value):
                raise ValueError(
                    f"{name}: holds compressed, pickled tests, as LiveCodeBench's private_test_cases; a pickle can "
                    "run code, so decode them to JSON text when you prepare the dataset"
                ) from None
            raise ValueError(f"{name}: got text {_cut(repr(text))} that is no JSON ({error})") from None
    return value


def from_apps(name: str, tests: Mapping[str, Any], comparison: Comparison) -> StdioTests | CallTests:
    """`{"inputs": [...], "outputs": [...]}`, with `fn_name` for calls.

    Raises:
        ValueError: the two are no lists of one length, or one of them has something else than expected in it.
    """
    inputs, outputs = tests["inputs"], tests["outputs"]
    for key, column in (("inputs", inputs), ("outputs", outputs)):
        if not _is_list(column) or not len(column):
            raise wrong(f"{name}.{key}", column, "a list with at least one entry")
    if len(inputs) != len(outputs):
        raise ValueError(f"{name}: {len(inputs)} inputs but {len(outputs)} outputs; expected one output per input")
    function = tests.get("fn_name")
    if not function:
        return _stdio(name, inputs, outputs, comparison)
    return _calls(name, _function(f"{name}.fn_name", function), inputs, outputs, comparison)


def from_pairs(name: str, pairs: Sequence[Any], comparison: Comparison, metadata: Any = None) -> StdioTests | CallTests:
    """A list of dicts with input and output, or of two-element lists.

    Args:
        metadata: the row's, where LiveCodeBench names the function (`func_name`); a dict or its JSON text.

    Raises:
        ValueError: a pair is none, or some are calls and others are not.
    """
    if not len(pairs):
        raise wrong(name, pairs, "a list with at least one pair of input and output")
    found = [_pair(f"{name}[{index}]", pair) for index, pair in enumerate(pairs)]
    inputs = [one for one, _, _ in found]
    outputs = [other for _, other, _ in found]
    kinds = {kind for _, _, kind in found if kind is not None}
    if len(kinds) > 1:
        raise ValueError(f"{name}: some tests are calls and some are standard input; expected one kind per task")
    if kinds != {True}:
        return _stdio(name, inputs, outputs, comparison)
    function = _function_of_pairs(name, pairs, metadata)
    return _calls(name, function, inputs, outputs, comparison)


def _pair(name: str, pair: Any) -> tuple[Any, Any, bool | None]:
    """Input, output, and whether it is a call (None: it does not say)."""
    if _is_list(pair) and len(pair) == 2:
        return pair[0], pair[1], None
    if not isinstance(pair, Mapping):
        raise wrong(name, pair, "a dict with input and output, or a list of the two")
    input_key = next((key for key in _INPUT_KEYS if key in pair), None)
    output_key = next((key for key in _OUTPUT_KEYS if key in pair), None)
    if input_key is None or output_key is None:
        raise wrong(name, pair, f"one of {', '.join(_INPUT_KEYS)} and one of {', '.join(_OUTPUT_KEYS)}")
    said = pair.get("testtype") or pair.get("type")
    if said in _CALL_TYPES or (said is None and pair.get("fn_name")):
        return pair[input_key], pair[output_key], True
    if said in _STDIO_TYPES:
        return pair[input_key], pair[output_key], False
    if said is not None:
        raise ValueError(f"{name}: type {said!r}; expected one of {', '.join(sorted(_STDIO_TYPES | _CALL_TYPES))}")
    return pair[input_key], pair[output_key], None


def _function_of_pairs(name: str, pairs: Sequence[Any], metadata: Any) -> str:
    if isinstance(metadata, str) and metadata.strip():
        metadata = from_json(f"{name}: metadata", metadata)
    named: set[Any] = set()
    for pair in pairs:
        if isinstance(pair, Mapping):
            own = pair.get("metadata")
            own = from_json(f"{name}: metadata", own) if isinstance(own, str) and own.strip() else own
            own_name = own.get("func_name") if isinstance(own, Mapping) else None
            named.add(pair.get("fn_name") or own_name)
    named.discard(None)
    if not named and isinstance(metadata, Mapping) and metadata.get("func_name"):
        named.add(metadata["func_name"])
    if len(named) != 1:
        raise ValueError(
            f"{name}: tests call a function, and name {sorted(map(str, named)) or 'none'}; expected one name, as "
            "fn_name of the tests or func_name in the column metadata"
        )
    return _function(name, named.pop())


def _stdio(name: str, inputs: Sequence[Any], outputs: Sequence[Any], comparison: Comparison) -> StdioTests:
    cases = tuple(
        StdioCase(stdin=_text(f"{name}: input {index}", one), stdout=_text(f"{name}: output {index}", other))
        for index, (one, other) in enumerate(zip(inputs, outputs, strict=True))
    )
    return StdioTests(cases=cases, comparison=comparison)


def _calls(
    name: str, function: str, inputs: Sequence[Any], outputs: Sequence[Any], comparison: Comparison
) -> CallTests:
    cases = []
    for index, (one, other) in enumerate(zip(inputs, outputs, strict=True)):
        if isinstance(one, str):  # LiveCodeBench: one JSON value per line, and the result as JSON
            lines = [line for line in one.split("\n") if line.strip()]
            arguments = [_json_value(f"{name}: input {index}", line) for line in lines]
            expected = _json_value(f"{name}: output {index}", other) if isinstance(other, str) else other
        elif _is_list(one):
            arguments, expected = _with_integer_keys(list(one)), other
        else:
            raise wrong(f"{name}: input {index}", one, "a list of arguments, or text with one JSON value per line")
        cases.append(CallCase(arguments=tuple(arguments), expected=expected))
    if all(_is_list(one) for one in inputs) and all(_is_list(other) and len(other) == 1 for other in outputs):
        comparison = replace(comparison, unwrap_expected=True)
    return CallTests(function=function, cases=tuple(cases), comparison=comparison)


def _with_integer_keys(arguments: list[Any]) -> list[Any]:
    """The first argument with integer keys where JSON made text of them, as the APPS harness undoes it."""
    if arguments and isinstance(arguments[0], Mapping):
        first = arguments[0]
        if first and all(isinstance(key, str) and _INTEGER.fullmatch(key) for key in first):
            return [{int(key): value for key, value in first.items()}, *arguments[1:]]
    return arguments


def _json_value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: got {_cut(repr(text))}; expected a JSON value ({error})") from None


def _text(name: str, value: Any) -> str:
    """Text, a number, or a list of lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if _is_list(value) and all(isinstance(line, str | int | float) for line in value):
        return "\n".join(map(str, value))
    raise wrong(name, value, "text, or a list of lines")


def _function(name: str, function: Any) -> str:
    if not isinstance(function, str) or not function.isidentifier():
        raise wrong(name, function, "the name of a function")
    return function


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_compressed(text: str) -> bool:
    """Base64 text of zlib data."""
    try:
        return base64.b64decode(text[:64], validate=True)[:1] == b"\x78"
    except (binascii.Error, ValueError):
        return False


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
