"""Plain data as lines of JSON: what crosses between trusted code and judged code.

JSON alone keeps neither tuples, sets, bytes nor large integers apart, so values are tagged:

    None, bool, str, int below 10**18   themselves          list        [item, ...]
    larger int      {"i": hex}           float  {"f": hex}    tuple       {"t": [item, ...]}
    bytes           {"b": hex}           bytearray {"y": hex} set         {"s": [item, ...]}
    complex         {"c": [hex, hex]}    range  {"r": [start, stop, step]}
    frozenset       {"z": [item, ...]}   dict   {"d": [[key, value], ...]}
    str with lone surrogates {"u": hex of UTF-8}
    an object that the candidate keeps (only between a tester and its candidate) {"h": reference}

Types are compared with `type()`, so an object whose class derives from a plain one never passes for plain. Two kinds
become the plain data that they are: a named tuple its tuple, a member of an enumeration of integers or texts its value.
Reading a line does work in proportion to its length, whatever it says. Slots import this: standard library only.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import accumulate, islice
from typing import Any

MAX_LINE_BYTES = 4 << 20
MAX_DEPTH = 80
"""Of nested containers."""
MAX_INT_BITS = 14_285
"""4300 decimal digits, Python's own limit for int(str). In bits, because counting digits takes quadratic time."""
MAX_COLLISIONS = 100
"""Elements of one set or dict that may share a hash: a set of n such elements takes n * n comparisons."""

_SHORT_INT = 10**18
_MAX_JSON_DIGITS = 20
_MAX_NESTING = 3 * MAX_DEPTH + 16
"""Of JSON brackets: a dict needs three for one level of depth; the rest is for the message around the value."""
_FEW_BRACKETS = 200
_NONE = type(None)
_CONSTANTS = frozenset((bool, _NONE))
_SCALARS = frozenset((bool, int, str, _NONE))
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""Also one that does not end; possessive: nothing is tried twice, so that the work is linear."""
_SLICE, _MOST_HASHING_S = 1000, 1.0
"""Keys with different hashes may still share one path through a table; only the time shows it."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = [{ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}.get(byte, 0) for byte in range(256)]

Reference = Callable[[Any], Any]


class NotPlain(ValueError):
    """A value that cannot cross."""

    def __init__(self, type_name: str, reason: str = "is no plain data") -> None:
        super().__init__(f"{type_name} {reason}")
        self.type_name = type_name


def dumps(message: Any) -> bytes:
    """One line of ASCII JSON, without the newline.

    Raises:
        NotPlain: it is longer than `MAX_LINE_BYTES`.
    """
    line = _ENCODER.encode(message).encode("ascii")
    if len(line) > MAX_LINE_BYTES:
        raise NotPlain("a message", f"takes {len(line)} bytes; at most {MAX_LINE_BYTES} may cross")
    return line


def loads(line: bytes | bytearray) -> Any:
    """Read one line from an untrusted writer; numbers are integers of at most 20 characters, nothing else.

    Raises:
        ValueError: too long, too deep, no UTF-8, no JSON, or a number that `encode` never writes.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line of {len(line)} bytes; at most {MAX_LINE_BYTES}")
    # json recurses in C; where someone raised the recursion limit, nesting would overflow the stack.
    if line.count(b"[") + line.count(b"{") > _FEW_BRACKETS and _nesting(line) > _MAX_NESTING:
        raise ValueError(f"nested deeper than {_MAX_NESTING} brackets")
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"unreadable: {type(error).__name__}") from None


def encode(value: Any, reference: Reference | None = None) -> Any:
    """Turn plain data into what `dumps` takes. numpy scalars and arrays, the containers of `collections`, named tuples
    and members of IntEnum and StrEnum become the plain data that they hold.

    Args:
        reference: is given each value that is not plain, named tuples and members included; returns what stands for
            it, or raises NotPlain.

    Raises:
        NotPlain: a value of another type, deeper than `MAX_DEPTH` or with an integer above `MAX_INT_BITS`.
    """
    return _encode(value, 0, reference)


def plain_of(value: Any) -> tuple[Any, ...] | int | str | None:
    """The plain data that a named tuple or a member of an enumeration of integers or texts is; None: it is neither."""
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return tuple.__getitem__(value, slice(None))
    if isinstance(value, Enum) and isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, Enum) and isinstance(value, str):
        return str.__str__(value)
    return None


def decode(data: Any, reference: Reference | None = None) -> Any:
    """The value that `encode` was given. Makes objects of builtin types only.

    Args:
        reference: turns the payload of {"h": ...} into an object; without it such data is refused.

    Raises:
        ValueError: `encode` never makes such data.
    """
    try:
        return _decode(data, 0, reference)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"bad data: {error}") from None


def _encode(value: Any, depth: int, reference: Reference | None) -> Any:
    kind = type(value)
    if kind is int:
        return value if -_SHORT_INT < value < _SHORT_INT else {"i": _hex(value)}
    if kind is str:
        return value if value.isascii() else _encode_text(value)
    if kind is bool or value is None:
        return value
    if kind is float:
        return {"f": value.hex()}
    if depth > MAX_DEPTH:
        raise NotPlain(kind.__name__, f"is nested deeper than {MAX_DEPTH} levels")
    if kind is list:
        return _encode_items(value, depth, reference)
    if kind is dict:
        return _encode_dict(value, depth, reference)
    tag = _ITEM_TAGS.get(kind)
    if tag is not None:
        return {tag: _encode_items(value, depth, reference)}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is bytearray:
        return {"y": value.hex()}
    if kind is complex:
        return {"c": [value.real.hex(), value.imag.hex()]}
    if kind is range:
        return {"r": [_encode(number, depth, None) for number in (value.start, value.stop, value.step)]}
    return _encode_other(value, depth, reference)


def _encode_items(items: Any, depth: int, reference: Reference | None) -> list[Any]:
    kinds = set(map(type, items))
    if len(kinds) == 1:  # the common large lists, at the speed of C
        (kind,) = kinds
        if kind is int and min(items) > -_SHORT_INT and max(items) < _SHORT_INT:
            return list(items)
        if kind is str and "".join(items).isascii():
            return list(items)
    if kinds <= _CONSTANTS:
        return list(items)
    return [_encode(item, depth + 1, reference) for item in items]


def _encode_dict(value: dict[Any, Any], depth: int, reference: Reference | None) -> dict[str, Any]:
    below = depth + 1
    return {"d": [[_encode(key, below, reference), _encode(item, below, reference)] for key, item in value.items()]}


def _encode_text(text: str) -> Any:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON would join two lone surrogates into one character
        return {"u": text.encode("utf-8", "surrogatepass").hex()}
    return text


def _encode_other(value: Any, depth: int, reference: Reference | None) -> Any:
    kind = type(value)
    module, name = kind.__module__, kind.__name__
    if module == "numpy" and hasattr(kind, "tolist"):
        return _encode(value.tolist(), depth + 1, reference)
    if module == "collections" and name == "deque":
        return _encode(list(value), depth, reference)
    if module == "collections" and name in ("defaultdict", "OrderedDict", "Counter"):
        return _encode_dict(value, depth, reference)
    plain = plain_of(value)
    if reference is not None:
        try:
            return {"h": reference(value)}
        except NotPlain:
            if plain is None:
                raise
    if plain is None:
        raise NotPlain(name)
    return _encode(plain, depth, reference)


def _hex(number: int) -> str:
    if number.bit_length() > MAX_INT_BITS:
        raise NotPlain("int", f"has {number.bit_length()} bits; at most {MAX_INT_BITS} may cross")
    return hex(number)


def _decode(data: Any, depth: int, reference: Reference | None) -> Any:
    kind = type(data)
    if kind in _SCALARS:
        return data
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if kind is list:
        return _decode_items(data, depth, reference)
    if kind is not dict or len(data) != 1:
        raise ValueError(f"{kind.__name__} instead of one tagged value")
    ((tag, payload),) = data.items()
    if tag == "h" and reference is not None:
        return reference(payload)
    read = _READERS.get(tag)
    if read is not None:
        return read(_typed(payload, str))
    if tag == "d":
        return _decode_dict(_list(payload), depth + 1, reference)
    items = _decode_items(_list(payload), depth, reference)
    if tag == "t":
        return tuple(items)
    if tag in ("s", "z"):
        return _make_set(items, set if tag == "s" else frozenset)
    if tag == "c":
        real, imaginary = items
        return complex(_read_float(real), _read_float(imaginary))
    if tag == "r":
        start, stop, step = (_typed(number, int) for number in items)
        return range(start, stop, step)
    raise ValueError(f"unknown tag {tag[:20]!r}")


def _decode_items(items: list[Any], depth: int, reference: Reference | None) -> list[Any]:
    if _SCALARS.issuperset(map(type, items)):
        return items.copy()
    return [_decode(item, depth + 1, reference) for item in items]


def _decode_dict(pairs: list[Any], depth: int, reference: Reference | None) -> dict[Any, Any]:
    keys, values = [], []
    for key, value in map(_list, pairs):
        keys.append(_decode(key, depth, reference))
        values.append(_decode(value, depth, reference))
    _check_hashes(keys)
    made: dict[Any, Any] = {}
    for chosen in _slices(len(keys)):
        made.update(zip(keys[chosen], values[chosen], strict=True))
    if len(made) != len(keys):
        raise ValueError("a dict with equal keys")
    return made


def _make_set(items: list[Any], kind: type[Any]) -> Any:
    _check_hashes(items)
    made: set[Any] = set()
    for chosen in _slices(len(items)):
        made.update(items[chosen])
    if len(made) != len(items):
        raise ValueError("a set with equal elements")
    return made if kind is set else kind(made)


def _slices(count: int) -> Iterator[slice]:
    """Slices of so many items. Raises ValueError when working on them takes too long."""
    began = time.thread_time()
    for start in range(0, count, _SLICE):
        yield slice(start, start + _SLICE)
        if time.thread_time() - began > _MOST_HASHING_S:
            raise ValueError(f"a table of {count} keys that takes more than {_MOST_HASHING_S:g} s to fill")


def _check_hashes(items: Sequence[Any]) -> None:
    hashes = sorted(map(hash, items))
    collisions = sum(map(operator.eq, hashes, islice(hashes, 1, None)))
    if collisions > MAX_COLLISIONS:
        raise ValueError(f"{collisions} elements share a hash; at most {MAX_COLLISIONS}")


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _list(value: Any) -> list[Any]:
    return _typed(value, list)


def _read_integer(text: str) -> int:
    if len(text) > MAX_INT_BITS // 4 + 4:  # "-0x" and the digits
        raise ValueError(f"an integer of {len(text)} hexadecimal digits")
    return int(text, 16)


def _read_float(text: str) -> float:
    if len(text) > 32:
        raise ValueError(f"a float of {len(text)} characters")
    return float.fromhex(text)


def _read_text(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


def _json_integer(text: str) -> int:
    if len(text) > _MAX_JSON_DIGITS:
        raise ValueError(f"an integer of {len(text)} characters; at most {_MAX_JSON_DIGITS}")
    return int(text)


def _refuse_number(text: str) -> Any:
    raise ValueError(f"the number {text[:30]}; only integers may stand untagged")


def _nesting(line: bytes | bytearray) -> int:
    brackets = _STRING.sub(b"", line).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False)
_DECODER = json.JSONDecoder(parse_int=_json_integer, parse_float=_refuse_number, parse_constant=_refuse_number)
_ITEM_TAGS: dict[type, str] = {tuple: "t", set: "s", frozenset: "z"}
_READERS: dict[str, Callable[[str], Any]] = {
    "i": _read_integer,
    "f": _read_float,
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "u": _read_text,
}
