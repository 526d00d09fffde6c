"""Decides whether a claimed output equals the expected one. Trusted side only; the claim is hostile.

No eval, no int() or Decimal of long digit strings, nothing quadratic: the work is linear in the sizes of both
sides (times log n where order does not matter). What is claimed never raises here.

Standard output: UTF-8, CRLF as LF, trailing blanks of lines and blank lines at the end dropped; then line by
line, and token by token where lines differ only in blanks or in how a number is written. Values: as JSON
blurs them (tuples are lists, dict keys are text), and strict otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import repeat
from typing import Any

from funicular.rewards.sandbox.types import Comparison

EXACT = Comparison()
MAX_DEPTH = 100
"""Nesting of values that are compared; deeper ones are not equal. The codec's own cap is lower."""

_INTEGER = re.compile(rb"[+-]?[0-9]+\Z")
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\Z")
_MAX_DECIMAL_CHARACTERS = 400
_EXACT_IN_FLOAT = 2**53
_SEQUENCES = (list, tuple)
_SETS = (set, frozenset)
_NUMBERS = (int, float)  # bool is an int: it is looked for first
_INFINITY = float("inf")


def same_stdout(claimed: bytes, expected: str, comparison: Comparison = EXACT) -> bool:
    """Whether what a program wrote is the expected text.

    Integers may be claimed with a plus sign or leading zeros; an expected token that is itself written so must
    be matched as it stands. Decimal numbers match by value only within `comparison.tolerance`, and `inf` and
    `nan` only as the same text.
    """
    try:
        text = claimed.decode("utf-8")
    except UnicodeDecodeError:
        return False
    claimed_lines = _lines(text, comparison)
    expected_lines = _lines(expected, comparison)
    if len(claimed_lines) != len(expected_lines):
        return False
    if claimed_lines == expected_lines:
        return True
    if comparison.unordered_lines:
        claimed_lines = _sorted_lines(claimed_lines, comparison.tolerance)
        expected_lines = _sorted_lines(expected_lines, comparison.tolerance)
    return all(map(_same_line, claimed_lines, expected_lines, repeat(comparison.tolerance)))


def same_value(claimed: Any, expected: Any, comparison: Comparison = EXACT) -> bool:
    """Whether what a call returned is the expected value; both plain data as `codec.decode` makes it.

    A tuple equals a list, a set the sorted list of its elements, an int a float of the same value, a dict's key
    what JSON makes of it; a bool only a bool; NaN nothing. `comparison.tolerance` is for numbers where a float
    is involved.
    """
    if comparison.ignore_case:
        claimed, expected = _casefolded(claimed, 0), _casefolded(expected, 0)
    if _same_outermost(claimed, expected, comparison):
        return True
    wrapped = comparison.unwrap_expected and isinstance(expected, _SEQUENCES) and len(expected) == 1
    return wrapped and _same_outermost(claimed, expected[0], comparison)


def _lines(text: str, comparison: Comparison) -> list[bytes]:
    if comparison.ignore_case:
        text = text.casefold()
    # Bytes know only ASCII blanks. A lone surrogate in an expected text equals nothing that is UTF-8.
    whole = text.encode("utf-8", "surrogatepass").replace(b"\r\n", b"\n").rstrip()
    return [line.rstrip() for line in whole.split(b"\n")] if whole else []


def _sorted_lines(lines: list[bytes], tolerance: float) -> list[bytes]:
    return sorted(lines, key=lambda line: ([_token_key(token, tolerance) for token in line.split()], line))


def _token_key(token: bytes, tolerance: float) -> tuple[int, float, bytes]:
    """Numbers by value where a tolerance lets differently written ones match, so that such lines stay
    neighbours."""
    if tolerance:
        number = _number(token)
        return (1, 0.0, token) if number is None else (0, number, b"")
    return 1, 0.0, _canonical(token)


def _same_line(claimed: bytes, expected: bytes, tolerance: float) -> bool:
    if claimed == expected:
        return True
    claimed_tokens, expected_tokens = claimed.split(), expected.split()
    return len(claimed_tokens) == len(expected_tokens) and all(
        _same_token(mine, theirs, tolerance)
        for mine, theirs in zip(claimed_tokens, expected_tokens, strict=True)
        if mine != theirs
    )


def _same_token(claimed: bytes, expected: bytes, tolerance: float) -> bool:
    if _canonical(claimed) == expected:
        return True
    if not tolerance:
        return False
    claimed_is_whole, expected_is_whole = _INTEGER.match(claimed), _INTEGER.match(expected)
    if claimed_is_whole and expected_is_whole:
        return False
    mine, theirs = _number(claimed), _number(expected)
    if mine is None or theirs is None:
        return False
    return _close(mine, theirs, tolerance, whole=bool(expected_is_whole))


def _canonical(token: bytes) -> bytes:
    """An integer without plus sign, leading zeros and minus zero; anything else as it is."""
    if not _INTEGER.match(token):
        return token
    digits = token.lstrip(b"+-").lstrip(b"0")
    if not digits:
        return b"0"
    return b"-" + digits if token.startswith(b"-") else digits


def _number(token: bytes) -> float | None:
    if len(token) > _MAX_DECIMAL_CHARACTERS or not _DECIMAL.match(token):
        return None
    number = float(token)
    return None if abs(number) == _INFINITY else number


def _close(claimed: float, expected: float, tolerance: float, *, whole: bool) -> bool:
    """Within the tolerance of the expected number, relative to it only if it is not a whole number."""
    if whole:
        # Else a large integer could be claimed roughly, by writing it as a decimal.
        return abs(expected) < _EXACT_IN_FLOAT and abs(claimed - expected) <= tolerance
    return abs(claimed - expected) <= max(tolerance, tolerance * abs(expected))


def _casefolded(value: Any, depth: int) -> Any:
    """With all texts casefolded, but for the keys of dicts."""
    if isinstance(value, str):
        return value.casefold()
    if depth > MAX_DEPTH or not isinstance(value, (*_SEQUENCES, *_SETS, dict)):
        return value
    if isinstance(value, dict):
        return {key: _casefolded(element, depth + 1) for key, element in value.items()}
    return [_casefolded(element, depth + 1) for element in (_in_order(value) if isinstance(value, _SETS) else value)]


def _same_outermost(claimed: Any, expected: Any, comparison: Comparison) -> bool:
    if comparison.unordered_lines and isinstance(claimed, _SEQUENCES) and isinstance(expected, _SEQUENCES):
        claimed, expected = _in_order(claimed), _in_order(expected)
    return _same(claimed, expected, comparison.tolerance, 0)


def _same(claimed: Any, expected: Any, tolerance: float, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    if isinstance(claimed, _SETS):
        claimed = _in_order(claimed)
    if isinstance(expected, _SETS):
        expected = _in_order(expected)
    if isinstance(expected, _SEQUENCES):
        return (
            isinstance(claimed, _SEQUENCES)
            and len(claimed) == len(expected)
            and all(_same(mine, theirs, tolerance, depth + 1) for mine, theirs in zip(claimed, expected, strict=True))
        )
    if isinstance(expected, dict):
        return isinstance(claimed, dict) and _same_dict(claimed, expected, tolerance, depth)
    if isinstance(expected, bool) or isinstance(claimed, bool):
        return claimed is expected
    if isinstance(expected, _NUMBERS):
        return isinstance(claimed, _NUMBERS) and _same_number(claimed, expected, tolerance)
    return type(claimed) is type(expected) and claimed == expected


def _same_dict(claimed: dict[Any, Any], expected: dict[Any, Any], tolerance: float, depth: int) -> bool:
    if len(claimed) != len(expected):
        return False
    mine = {_json_key(key): value for key, value in claimed.items()}
    theirs = {_json_key(key): value for key, value in expected.items()}
    # Two keys that JSON cannot tell apart leave fewer than there were.
    if len(mine) != len(claimed) or len(theirs) != len(expected) or mine.keys() != theirs.keys():
        return False
    return all(_same(mine[key], value, tolerance, depth + 1) for key, value in theirs.items())


def _same_number(claimed: int | float, expected: int | float, tolerance: float) -> bool:
    if claimed == expected:
        return True
    whole = isinstance(expected, int)
    if not tolerance or (whole and isinstance(claimed, int)):
        return False
    try:
        mine, theirs = float(claimed), float(expected)
    except OverflowError:
        return False
    if abs(mine) == _INFINITY or abs(theirs) == _INFINITY:
        return False
    return _close(mine, theirs, tolerance, whole=whole)


def _json_key(key: Any) -> tuple[Any, ...]:
    """A dict's key as JSON would write it; what JSON cannot write, by type and value."""
    if isinstance(key, str):
        return "text", key
    if isinstance(key, bool):
        return "text", "true" if key else "false"
    if key is None:
        return "text", "null"
    if isinstance(key, float):
        return "text", repr(key)
    if isinstance(key, int) and key.bit_length() < 4096:  # str() refuses integers of more than 4300 digits
        return "text", str(key)
    return "other", _order(key, 0)


def _in_order(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: _order(value, 0))


def _order(value: Any, depth: int) -> tuple[Any, ...]:
    """A key that puts plain data of any types in one order: Python's own among numbers, texts or tuples, and the
    same for values that JSON cannot tell apart. Values nested too deep are one."""
    if depth > MAX_DEPTH:
        return (0,)
    if value is None:
        return (1,)
    if isinstance(value, bool):
        return 2, value
    if isinstance(value, _NUMBERS):
        return 3, value
    if isinstance(value, str):
        return 4, value
    if isinstance(value, bytes):
        return 5, value
    if isinstance(value, _SEQUENCES):
        return 6, tuple(_order(element, depth + 1) for element in value)
    if isinstance(value, _SETS):
        return 6, tuple(sorted(_order(element, depth + 1) for element in value))
    if isinstance(value, dict):
        return 7, tuple(sorted((_json_key(key), _order(element, depth + 1)) for key, element in value.items()))
    if isinstance(value, range):
        return 8, value.start, value.stop, value.step
    return (9, value.real, value.imag) if isinstance(value, complex) else (10, type(value).__name__)
