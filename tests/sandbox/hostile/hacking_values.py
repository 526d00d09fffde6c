"""Reward hacks where a function is called with arguments: what it returns is wrong, and claims to be equal."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TestSet
from tests.sandbox.programs import HostileProgram, calls, code

_CLAIM = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_ADD = calls(((1, 2), 3), ((5, 7), 12))


def _called(
    name: str, why: str, source: str, tests: TestSet = _ADD, outcomes: frozenset[Outcome] = _CLAIM
) -> HostileProgram:
    return HostileProgram(name=f"{name}_in_call", why=why, source=code(source), tests=tests, outcomes=outcomes)


PROGRAMS = (
    _called(
        "always_equal",
        "an object that equals everything",
        """
        class Any:
            def __eq__(self, other):
                return True
            __hash__ = None
        def solve(a, b):
            return Any()
        """,
    ),
    _called(
        "int_subclass",
        "an integer whose class decides equality",
        """
        class Number(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __index__(self): return 3
            __class__ = int
        def solve(a, b):
            return Number(0)
        """,
    ),
    _called(
        "str_subclass",
        "a text whose class decides equality and encoding",
        """
        class Text(str):
            def __eq__(self, other): return True
            def encode(self, *_): return b"right"
            def isascii(self): return True
            __hash__ = str.__hash__
        def solve(n):
            return Text("wrong")
        """,
        calls(((1,), "right")),
    ),
    _called(
        "list_subclass",
        "a list whose class decides equality, length and items",
        """
        class Items(list):
            def __eq__(self, other): return True
            def __len__(self): return 2
            def __iter__(self): return iter([1, 2])
        def solve(n):
            return Items([0])
        """,
        calls(((1,), [1, 2])),
    ),
    _called(
        "equal_inside",
        "always equal elements inside plain containers",
        """
        class Any:
            def __eq__(self, other): return True
            def __hash__(self): return hash(2)
        def solve(n):
            return [1, {Any(): Any()}, (Any(),)]
        """,
        calls(((1,), [1, {2: 3}, (4,)])),
    ),
    _called(
        "class_that_lies",
        "a class that calls itself int, module builtins",
        """
        lies = {"__module__": "builtins", "__eq__": lambda s, o: True, "__class__": property(lambda s: int)}
        Fake = type("int", (), lies)
        def solve(a, b):
            return Fake()
        """,
    ),
    _called(
        "numpy_that_lies",
        "an object whose class says that it is of numpy, with tolist of its own",
        """
        class Array:
            calls = 0
            def tolist(self):
                Array.calls += 1
                return Array() if Array.calls < 1000 else 0
        Array.__module__ = "numpy"
        def solve(a, b):
            return Array()
        """,
    ),
    _called("true_for_one", "True where 1 is expected", "def solve(n):\n    return True\n", calls(((1,), 1))),
    _called("one_for_true", "1 where True is expected", "def solve(n):\n    return 1\n", calls(((1,), True))),
    _called("text_for_number", "'3' where 3 is expected", "def solve(a, b):\n    return str(a + b)\n"),
    _called("number_for_text", "3 where '3' is expected", "def solve(n):\n    return 3\n", calls(((1,), "3"))),
    _called(
        "none_for_empty",
        "None where [] is expected",
        """
        def solve(n):
            return None
        """,
        calls(((1,), [])),
    ),
    _called(
        "not_a_number",
        "nan where nan is expected, and equals nothing",
        "def solve(n):\n    return float('nan')\n",
        calls(((1,), float("nan"))),
    ),
    _called(
        "infinity",
        "inf within a tolerance",
        "def solve(n):\n    return float('inf')\n",
        calls(((1,), 1e308), tolerance=0.9),
    ),
    _called("nearly", "close, where exactness is required", "def solve(a, b):\n    return a + b + 1e-12\n"),
    _called(
        "large_nearly",
        "2^53 + 1 for 2.0^53",
        """
        def solve(n):
            return 2**53 + 1
        """,
        calls(((1,), 2.0**53)),
    ),
    _called(
        "longer",
        "the right prefix and more",
        """
        def solve(n):
            return [1, 2, 3]
        """,
        calls(((1,), [1, 2])),
    ),
    _called(
        "its_argument",
        "returns its argument, changed",
        "def solve(x):\n    x.clear()\n    return x\n",
        calls((([3, 1, 2],), [1, 2, 3])),
    ),
    _called("all_values", "a generator of every number", "def solve(a, b):\n    yield from range(100)\n"),
    _called(
        "endless_values",
        "a generator without an end",
        "def solve(a, b):\n    while True:\n        yield a + b\n",
        outcomes=_CLAIM | {Outcome.CPU, Outcome.MEMORY},
    ),
    _called("its_function", "returns itself", "def solve(a, b):\n    return solve\n"),
    _called(
        "same_keys",
        "a dictionary with 1, True and '1' for the same key",
        "def solve(n):\n    return {'1': 0, 1: 5}\n",
        calls(((1,), {"1": 5})),
    ),
    _called(
        "set_for_list",
        "a set where order and repetition are expected",
        "def solve(n):\n    return {3, 1, 2}\n",
        calls(((1,), [3, 1, 2, 1])),
    ),
    _called(
        "named_tuple",
        "a named tuple that decides equality, order and what it holds",
        """
        from collections import namedtuple
        class Pair(namedtuple("Pair", "x y")):
            def __eq__(self, other): return True
            def __getitem__(self, index): return 3
            def __iter__(self): return iter([3])
            def __len__(self): return 1
            __hash__ = tuple.__hash__
            _fields = property(lambda self: ("x",))
        def solve(a, b):
            return Pair(0, 0)
        """,
        calls(((1, 2), [3])),
    ),
    _called(
        "member_of_an_enumeration",
        "a member of an IntEnum whose value says what it is not",
        """
        from enum import IntEnum
        class Number(IntEnum):
            ZERO = 0
            value = property(lambda self: 3)
            def __eq__(self, other): return True
            def __int__(self): return 3
            __hash__ = int.__hash__
        def solve(a, b):
            return Number.ZERO
        """,
    ),
    _called(
        "member_without_a_plain_value",
        "a member of an Enum, which is nothing plain, though its value would be right",
        """
        from enum import Enum
        class Sum(Enum):
            THREE, TWELVE = 3, 12
        def solve(a, b):
            return Sum(a + b)
        """,
    ),
)
