"""Reward hacks against tests that are code: names that shadow the test's own, objects and arguments that lie."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TesterStyle, TestSet
from tests.sandbox.hostile.hacking_tests import ASSERTS, CHECK, PYTEST, UNITTEST
from tests.sandbox.programs import FORGING, SECRET, HostileProgram, code, judged_by

_REFUSED = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_ENDED = _REFUSED | {Outcome.SIGNAL, Outcome.WALL, Outcome.FORBIDDEN}


def _program(
    name: str, why: str, source: str, tests: TestSet, outcomes: frozenset[Outcome] = _REFUSED
) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=tests, outcomes=outcomes)


def _check(*lines: str) -> TestSet:
    """HumanEval's `check(candidate)` with this body."""
    body = "".join(f"    {line}\n" for line in lines)
    return judged_by(TesterStyle.HUMANEVAL, f"def check(candidate):\n{body}", entry_point="solve")


NAMES = (
    _program(
        "shadows_abs",
        "defines abs, which the test applies to its result",
        "def abs(x):\n    return 0\ndef solve(x):\n    return -1.0\n",
        judged_by(TesterStyle.ASSERTS, "", "assert abs(solve(2.0) - 4.0) < 1e-6"),
    ),
    _program(
        "shadows_sorted",
        "defines the builtins that the test uses",
        """
        def sorted(x):
            return [1, 2]
        def set(x):
            return 5
        def len(x):
            return 2
        def isinstance(*a):
            return True
        def all(x):
            return True
        def solve(x):
            return []
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "",
            "assert sorted(solve([2, 1])) == [1, 2]",
            "assert set(solve([1])) == set([2])",
            "assert len(solve([1])) == 2",
            "assert all(n == 1 for n in [2])",
        ),
    ),
    _program(
        "shadows_math",
        "defines what the test imports",
        """
        class math:
            isclose = staticmethod(lambda *a, **k: True)
            sqrt = isclose
        def isclose(*a, **k):
            return True
        def solve(x):
            return -1.0
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "import math\nfrom math import isclose",
            "assert math.isclose(solve(2.0), 4.0)",
            "assert isclose(solve(2.0), 4.0)",
        ),
    ),
    _program(
        "shadows_abs_in_check",
        "defines abs, the only name that the check takes from outside",
        """
        def abs(x):
            return 0
        def solve(x):
            return -1.0
        """,
        _check("assert abs(candidate(2.0) - 4.0) < 1e-6"),
    ),
    _program(
        "shadows_range_in_check",
        "defines range, so that the check's loop never runs",
        """
        def range(*a):
            return []
        zip = enumerate = map = range
        def solve(n):
            return 0
        """,
        _check("for n in range(1, 4):", "    assert candidate(n) == 2 * n"),
    ),
    _program(
        "shadows_math_in_check",
        "defines the module that the check forgot to import",
        """
        class math:
            isclose = staticmethod(lambda *a, **k: True)
        class np:
            allclose = staticmethod(lambda *a, **k: True)
        def solve(x):
            return -1.0
        """,
        _check("assert math.isclose(candidate(2.0), 4.0)"),
    ),
    _program(
        "shadows_len_in_unittest",
        "defines the builtins that a test file uses, which imports what it tests",
        """
        def len(x):
            return 2
        def zip(*a):
            return []
        def solve(n):
            return [0]
        """,
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            import solution
            from solution import solve
            class TestSolve(unittest.TestCase):
                def test_length(self):
                    self.assertEqual(len(solve(2)), 2)
            """,
        ),
    ),
    _program(
        "shadows_check",
        "defines check, candidate, METADATA and AssertionError",
        """
        def check(candidate):
            return None
        candidate = check
        METADATA = {}
        class AssertionError(Exception):
            pass
        class Exception(BaseException):
            pass
        def __build_class__(*a):
            return None
        def solve(a, b):
            return 0
        """,
        CHECK,
    ),
    _program(
        "shadows_unittest",
        "defines unittest, TestCase, pytest and the test class",
        """
        class unittest:
            class TestCase:
                pass
            @staticmethod
            def main():
                return None
        class TestCase:
            pass
        class TestSolve:
            pass
        class pytest:
            class mark:
                parametrize = staticmethod(lambda *a: lambda f: None)
        def assertEqual(*a):
            return None
        def solve(a, b):
            return 0
        """,
        UNITTEST,
    ),
    _program(
        "announces_builtins",
        "announces builtins, dunders and modules as its functions and classes",
        """
        import json, os
        names = [
            "solve", "abs", "print", "len", "__builtins__", "__import__", "__name__", "__class__", "AssertionError",
            "unittest", "sys", "candidate", "check", "a b", "x" * 10000, "", "__getattr__", "__dict__", "__all__",
        ]
        os.write(4, json.dumps({"ready": {"functions": names, "classes": names, "coroutines": names,
                                          "exceptions": {name: "BaseException" for name in names}}}).encode() + b"\\n")
        def solve(a, b):
            return 0
        """,
        ASSERTS,
    ),
    _program(
        "announces_no_lists",
        "announces things that are no lists of names",
        """
        import json, os
        ready = {"functions": {"solve": 1}, "classes": [[["x"]]], "exceptions": [1]}
        os.write(4, json.dumps({"ready": ready}).encode() + b"\\n")
        def solve(a, b):
            return a + b
        """,
        ASSERTS,
    ),
    _program(
        "class_of_exceptions",
        "an exception of its own that the test's assertions would swallow",
        """
        class AssertionError(ValueError):
            def __init__(self, *a):
                pass
        class TestSolve(AssertionError):
            pass
        def solve(a, b):
            raise TestSolve()
        """,
        UNITTEST,
    ),
)

OBJECTS = (
    _program(
        "objects_that_equal",
        "its objects decide their own equality, length and order",
        """
        class Stack:
            def __init__(self): pass
            def push(self, x): return None
            def pop(self): return Any()
            def __eq__(self, other): return True
            def __len__(self): return 0
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
            def __hash__(self): return 0
        """,
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            from solution import Stack
            class TestStack(unittest.TestCase):
                def test_pop(self):
                    stack = Stack()
                    stack.push(1)
                    stack.push(2)
                    self.assertEqual(stack.pop(), 2)
                    self.assertEqual(stack.pop(), 1)
            """,
        ),
    ),
    _program(
        "answers_every_operation",
        "returns an object that is close to everything, larger than everything, and holds everything",
        """
        class Any:
            __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__ = lambda *_: True
            __sub__ = __rsub__ = __add__ = __abs__ = __round__ = __getitem__ = lambda *_: Any()
            __float__ = lambda self: 4.0
            __iter__ = lambda self: iter([Any(), Any()])
            __hash__ = lambda self: hash(4.0)
        def solve(x):
            return Any()
        """,
        judged_by(TesterStyle.ASSERTS, "import math", "assert abs(solve(2.0) - 4.0) < 1e-6"),
    ),
    _program(
        "holds_everything",
        "the same, where a test asks whether the result holds something",
        """
        class Any:
            __contains__ = lambda *_: True
            __iter__ = lambda self: iter([self])
            __eq__ = lambda *_: True
            __len__ = lambda self: 1
        def solve(x):
            return Any()
        """,
        judged_by(TesterStyle.ASSERTS, "", "assert 77 in solve(1)"),
    ),
    _program(
        "changed_arguments",
        "claims that its arguments changed to what the test looks at next",
        """
        import json, os
        def solve(items, expected):
            items[:] = [0]
            expected[:] = [0]
            return [0]
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "expected = (1, 2, 3)",
            "assert solve([3, 1, 2], [1]) == list(expected)",
        ),
    ),
    _program(
        "arguments_of_other_types",
        "claims that its arguments became other things, in other numbers",
        FORGING
        + code("""
        def solve(a, b):
            say({"id": request_id(), "value": 0, "args": {"t": [{"d": [["__class__", 1]]}, 3, 3, 3, 3]}})
            os.read(4, 1)
        """),
        ASSERTS,
        _ENDED,
    ),
    _program(
        "handles_of_others",
        "hands out handles that it never made, of classes that it does not have",
        FORGING
        + code("""
        def solve(a, b):
            say({"id": request_id(), "handle": [10**9, "x"][a % 2], "class": "__class__.__init__.__globals__"})
            os.read(4, 1)
        """),
        CHECK,
        _ENDED,
    ),
    _program(
        "named_tuple_as_the_expected_value",
        "a class that makes every object that the tests construct equal to what it returns",
        """
        from typing import NamedTuple
        class Point(NamedTuple):
            x: int
            y: int
        make = Point.__new__
        Point.__new__ = lambda cls, *fields: make(cls, 0, 0)
        def solve(a, b):
            return Point(a, b)
        """,
        judged_by(TesterStyle.ASSERTS, "", "assert solve(1, 2) == Point(1, 2)"),
    ),
    _program(
        "named_tuple_that_was_never_made",
        "claims a named tuple whose value is a list, a handle, or of no kind",
        FORGING
        + code("""
        def solve(a, b):
            values = ([3], {"h": [0, "x"]}, None, {"d": []})
            say({"id": request_id(), "value": {"h": [0, "Point", values[a % 4]]}})
            os.read(4, 1)
        """),
        CHECK,
        _ENDED,
    ),
    _program(
        "tests_in_memory",
        "looks for the test's text, then answers from it",
        """
        import gc, re, sys
        def solve(n):
            frame, texts = sys._getframe(), [repr(vars(sys.modules["__main__"]))]
            while frame:
                texts.append(repr(frame.f_locals))
                frame = frame.f_back
            texts += [thing for thing in gc.get_objects() if isinstance(thing, str)]
            for text in texts:
                found = re.search("answer-[0-9a-f]{16}", text)
                if found:
                    return found.group()
            return None
        """,
        judged_by(TesterStyle.ASSERTS, "", f"assert solve(1) == {SECRET!r}"),
    ),
    _program(
        "only_the_first_test",
        "right in the first test only",
        "def solve(a, b):\n    return 3\n",
        PYTEST,
    ),
)

PROGRAMS = (*NAMES, *OBJECTS)
