"""Programs whose functions are called: by cases of arguments, and by tests that are code."""

from __future__ import annotations

from typing import Any

from funicular.rewards.sandbox.types import TesterStyle, TestSet
from tests.sandbox.programs import BenignProgram, calls, code, judged_by


def _served(name: str, source: str, tests: TestSet, *, needs: str = "") -> BenignProgram:
    return BenignProgram(name=name, source=code(source), tests=tests, needs=needs)


def _called(name: str, source: str, *pairs: tuple[tuple[Any, ...], Any], needs: str = "") -> BenignProgram:
    return _served(name, source, calls(*pairs), needs=needs)


CALLED = (
    _called(
        "function",
        """
        def solve(a, b):
            return a + b
        """,
        ((1, 2), 3),
        (("a", "b"), "ab"),
        (([1], [2]), [1, 2]),
    ),
    _served(
        "class_solution",
        """
        from typing import List
        class Solution:
            def __init__(self):
                self.seen = []
            def twoSum(self, nums: List[int], target: int) -> List[int]:
                assert not self.seen
                for i, n in enumerate(nums):
                    if target - n in self.seen:
                        return [self.seen.index(target - n), i]
                    self.seen.append(n)
        """,
        calls((([2, 7, 11], 9), [0, 1]), (([3, 3], 6), [0, 1]), function="twoSum"),
    ),
    _called(
        "prints_meanwhile",
        """
        print('loading')
        def solve(n):
            print('working', n)
            return n
        """,
        ((1,), 1),
        ((2,), 2),
    ),
    _called(
        "many_types",
        "def solve(x):\n    return x\n",
        ((None,), None),
        ((True,), True),
        ((-(10**40),), -(10**40)),
        ((0.1,), 0.1),
        (("漢🚡\u0000",), "漢🚡\u0000"),
        ((b"\xff",), b"\xff"),
        (((1, (2,)),), (1, (2,))),
        (({1, 2},), {1, 2}),
        (({"a": {1: [None]}},), {"a": {1: [None]}}),
        ((2 + 3j,), 2 + 3j),
        (([],), []),
    ),
    _called("tuple_for_list", "def solve(n):\n    return (n, n + 1)\n", ((1,), [1, 2])),
    _called("float_for_int", "def solve(n):\n    return n / 2\n", ((4,), 2)),
    _called("generator", "def solve(n):\n    for i in range(n):\n        yield i\n", ((3,), [0, 1, 2])),
    _called("range_and_map", "def solve(n):\n    return list(map(str, range(n)))\n", ((3,), ["0", "1", "2"])),
    _called(
        "collections_returned",
        """
        from collections import Counter, OrderedDict, defaultdict, deque
        def solve(n):
            return [deque([1]), Counter('aa'), OrderedDict(a=1), defaultdict(int, b=2)]
        """,
        ((1,), [[1], {"a": 2}, {"a": 1}, {"b": 2}]),
    ),
    _called(
        "named_tuples_returned",
        """
        from collections import namedtuple
        from typing import NamedTuple
        Pair = namedtuple('Pair', 'low high')
        class Point(NamedTuple):
            x: int
            y: float = 0.5
        def solve(n):
            return [Pair(n, n + 1), {'p': Point(n)}, Pair(Point(1), ())]
        """,
        ((1,), [(1, 2), {"p": [1, 0.5]}, ((1, 0.5), ())]),
    ),
    _called(
        "members_returned",
        """
        from enum import Enum, IntEnum, IntFlag, StrEnum
        class Level(IntEnum):
            LOW = 1
        class Flag(IntFlag):
            A = 1
            B = 2
        class Name(StrEnum):
            RED = 'red'
        class OldName(str, Enum):
            RED = 'red'
        def solve(name):
            return {Level.LOW: [Flag.A | Flag.B, Name(name)], 'old': OldName(name)}
        """,
        (("red",), {1: [3, "red"], "old": "red"}),
    ),
    _called("set_for_its_sorted_list", "def solve(x):\n    return set(x)\n", (([3, 1, 3, 2],), [1, 2, 3]), (([],), [])),
    _called(
        "deep_recursion",
        """
        import sys
        sys.setrecursionlimit(10**5)
        def solve(n):
            return n and 1 + solve(n - 1)
        """,
        ((9_000,), 9_000),
    ),
    _called(
        "keeps_state",
        """
        count = 0
        def solve():
            global count
            count += 1
            return count
        """,
        ((), 1),
        ((), 2),
    ),
    _called(
        "large_argument",
        """
        def solve(x):
            return sum(x)
        """,
        ((list(range(200_000)),), sum(range(200_000))),
    ),
    _called("large_result", "def solve(n):\n    return list(range(n))\n", ((200_000,), list(range(200_000)))),
    _called(
        "threads_in_call",
        """
        from concurrent.futures import ThreadPoolExecutor
        def solve(n):
            with ThreadPoolExecutor(4) as p:
                return sum(p.map(abs, range(n)))
        """,
        ((10,), 45),
    ),
    _called(
        "async_function",
        """
        import asyncio
        async def solve(n):
            await asyncio.sleep(0.001)
            return n
        """,
        ((4,), 4),
    ),
    _called(
        "numpy_values",
        """
        import numpy as np
        def solve(n):
            return np.arange(n) * np.float64(0.5)
        """,
        ((3,), [0.0, 0.5, 1.0]),
        needs="numpy",
    ),
    _called(
        "guarded_main",
        """
        def solve(n):
            return n
        if __name__ == '__main__':
            print(solve(int(input())))
        """,
        ((1,), 1),
    ),
    _called("many_cases", "def solve(n):\n    return n * n\n", *(((n,), n * n) for n in range(500))),
    _called("lambda_function", "solve = lambda n: n + 1\n", ((1,), 2)),
    _called(
        "lru_cache",
        """
        from functools import lru_cache
        @lru_cache(None)
        def solve(n):
            return n if n < 2 else solve(n - 1) + solve(n - 2)
        """,
        ((90,), 2880067194370816120),
    ),
)

TESTED = (
    _served(
        "named_tuples_and_members_tested",
        """
        from enum import IntEnum
        from typing import NamedTuple
        class Point(NamedTuple):
            x: int
            y: int
            def norm(self):
                return abs(self.x) + abs(self.y)
        class Level(IntEnum):
            LOW = 1
            HIGH = 2
        def move(point, by):
            return Point(point[0] + by, point[1] + by)
        def level(point):
            return Level.HIGH if point.x > 1 else Level.LOW
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "",
            "assert move((1, 2), 1) == (2, 3)",
            "assert move((1, 2), 1).norm() == 5",
            "assert [level(Point(1, 1)), level(move((1, 2), 1))] == [1, 2]",
            "assert level(move((1, 2), 1)).name == 'HIGH'",
        ),
    ),
    _served(
        "humaneval",
        """
        def has_close_elements(numbers, threshold):
            return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[i + 1:])
        """,
        judged_by(
            TesterStyle.HUMANEVAL,
            """
            METADATA = {}
            def check(candidate):
                assert candidate([1.0, 2.0, 3.9], 0.3) == False
                assert candidate([1.0, 2.0, 2.2], 0.3) == True
            """,
            entry_point="has_close_elements",
        ),
    ),
    _served(
        "mbpp",
        """
        import math
        def area(r):
            return math.pi * r * r
        def helper(x):
            return x
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "import math",
            "assert math.isclose(area(2), 12.566, rel_tol=1e-3)",
            "assert round(area(1), 2) == 3.14",
        ),
    ),
    _served(
        "mutates_its_argument",
        """
        def sort(items, log):
            items.sort()
            log['calls'] = log.get('calls', 0) + 1
        """,
        judged_by(
            TesterStyle.ASSERTS,
            "data, log = [3, 1, 2], {}",
            "assert sort(data, log) is None",
            "assert data == [1, 2, 3]",
            "assert sort(data, log) is None and log == {'calls': 2}",
        ),
    ),
    _served(
        "exceptions_expected",
        """
        class Empty(Exception):
            pass
        def pop(items):
            if not items:
                raise Empty("nothing there")
            return items[-1]
        def check(n):
            if n < 0:
                raise ValueError(f"negative: {n}")
            return n / (n - 1)
        """,
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            from solution import check, pop
            class TestErrors(unittest.TestCase):
                def test_value(self):
                    with self.assertRaises(ValueError) as caught:
                        check(-3)
                    self.assertIn("negative", str(caught.exception))
                def test_zero(self):
                    self.assertRaises(ZeroDivisionError, check, 1)
                def test_own(self):
                    self.assertRaises(Exception, pop, [])
                    self.assertEqual(pop([1, 2]), 2)
            """,
        ),
    ),
    _served(
        "live_objects",
        """
        class Stack:
            def __init__(self, items=()):
                self._items = list(items)
            def push(self, item):
                self._items.append(item)
            def pop(self):
                return self._items.pop()
            def __len__(self):
                return len(self._items)
        class Account:
            def __init__(self, owner, balance=0):
                self.owner, self.balance = owner, balance
            def pay(self, amount):
                if amount > self.balance:
                    raise ValueError("not enough")
                self.balance -= amount
                return self
        """,
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            from solution import Account, Stack
            class TestObjects(unittest.TestCase):
                def setUp(self):
                    self.stack = Stack([1])
                def test_stack(self):
                    self.stack.push({"a": (1, 2)})
                    self.assertEqual(len(self.stack), 2)
                    self.assertEqual(self.stack.pop(), {"a": (1, 2)})
                    self.assertEqual(self.stack.pop(), 1)
                    with self.assertRaises(IndexError):
                        self.stack.pop()
                def test_account(self):
                    account = Account("me", balance=5)
                    account.pay(2)
                    self.assertEqual(account.balance, 3)
                    self.assertEqual(account.owner, "me")
                    self.assertRaises(ValueError, account.pay, 9)
            """,
        ),
    ),
    _served(
        "unittest_features",
        "def double(n):\n    return n * 2\nNAMES = ['a', 'b']\n",
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            import solution
            class TestDouble(unittest.TestCase):
                @classmethod
                def setUpClass(cls):
                    cls.factor = 2
                def test_many(self):
                    for n in range(5):
                        with self.subTest(n=n):
                            self.assertEqual(solution.double(n), self.factor * n)
                def test_list(self):
                    self.assertListEqual([solution.double(n) for n in (1, 2)], [2, 4])
                    self.assertAlmostEqual(solution.double(0.1), 0.2)
            if __name__ == "__main__":
                unittest.main()
            """,
        ),
    ),
    _served(
        "pytest_features",
        """
        def divide(a, b):
            return a / b
        def words(text):
            return text.split()
        """,
        judged_by(
            TesterStyle.PYTEST,
            """
            import pytest
            from solution import divide, words
            @pytest.fixture
            def text():
                return "a b c"
            @pytest.mark.parametrize(("a", "b", "expected"), [(4, 2, 2), (9, 3, 3), (1, 4, 0.25)])
            def test_divide(a, b, expected):
                assert divide(a, b) == expected
            def test_words(text):
                assert words(text) == ["a", "b", "c"]
            def test_zero():
                with pytest.raises(ZeroDivisionError):
                    divide(1, 0)
            def test_nearly():
                assert divide(1, 3) == pytest.approx(0.3333, abs=1e-3)
            class TestMore:
                def test_in_a_class(self):
                    assert words("") == []
            """,
        ),
        needs="pytest",
    ),
    _served(
        "prints_in_tests",
        """
        print('hello from the solution')
        def solve(n):
            print('solving')
            return n
        """,
        judged_by(TesterStyle.ASSERTS, "print('hello from the tests')", "assert solve(3) == 3"),
    ),
    _served(
        "sets_tuples_and_none",
        "def solve(n):\n    return {n, n + 1}, (n, None), {n: 'x'}\n",
        judged_by(
            TesterStyle.ASSERTS,
            "",
            "assert solve(1) == ({1, 2}, (1, None), {1: 'x'})",
            "assert isinstance(solve(1), tuple)",
        ),
    ),
    _served(
        "callbacks_of_its_own",
        """
        def make(n):
            def add(m):
                return n + m
            return add
        """,
        judged_by(TesterStyle.ASSERTS, "", "assert make(2)(3) == 5"),
    ),
    _served(
        "keyword_arguments",
        """
        def solve(a, *rest, b=2, **more):
            return [a, list(rest), b, more]
        """,
        judged_by(TesterStyle.ASSERTS, "", "assert solve(1, 5, b=3, c='d') == [1, [5], 3, {'c': 'd'}]"),
    ),
)

PROGRAMS = (*CALLED, *TESTED)
