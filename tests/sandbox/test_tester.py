"""Trusted tests against candidates, honest and hostile, in two processes."""

from typing import Any

import pytest

from tests.runtime_jobs import run_tests

PASSED = {"failed": 0, "skipped": 0, "first_failure": "", "violations": 0}

CANDIDATE = """
import asyncio
class Empty(IndexError): pass
class Node:
    limit = 5
    def __init__(self, v, next=None): self.v, self.next = v, next
    def values(self): return [self.v] + (self.next.values() if self.next else [])
    def __contains__(self, v): return v in self.values()
    def __len__(self): return len(self.values())
    def __getitem__(self, i): return self.values()[i]
    def startswith(self, v): return self.v == v
    @classmethod
    def of(cls, *values):
        node = None
        for v in reversed(values): node = cls(v, node)
        return node
def double(x): return x * 2
def pop(items):
    if not items: raise Empty("nothing to pop")
    return items.pop()
def link(a, b): a.next = b; return a
def adder(n): return lambda x: x + n
async def later(x): return x
LIMIT = 7
"""


def counts(verdict: dict[str, Any]) -> tuple[int, int, int, int]:
    return verdict["collected"], verdict["run"], verdict["failed"], verdict["skipped"]


def asserts(solution: str, *statements: str, setup: str = "", **options: Any) -> dict[str, Any]:
    return run_tests(solution, setup, style="asserts", statements=list(statements), **options)


def test_humaneval_calls_the_candidate_and_its_name() -> None:
    check = "def check(candidate):\n    assert candidate(2) == 4\n    assert double([1]) == [1, 1]\n"
    assert run_tests(CANDIDATE, check, style="humaneval", entry_point="double") == {**PASSED, "run": 1, "collected": 1}
    wrong = run_tests("def double(x): return 3", check, style="humaneval", entry_point="double")
    assert (counts(wrong), wrong["first_failure"]) == ((1, 1, 1, 0), "check: AssertionError")


def test_a_prelude_gives_the_tests_helpers_that_the_candidate_cannot_replace() -> None:
    prelude = "def half(x): return x / 2\ndef double(x):\n    '''Twice x.'''\n"
    check = "def check(candidate):\n    assert half(candidate(3)) == 3 == half(double(3))\n"
    options = {"style": "humaneval", "entry_point": "double", "prelude": prelude}
    assert counts(run_tests(CANDIDATE + "\ndef half(x): return 3", check, **options)) == (1, 1, 0, 0)
    assert counts(run_tests("def double(x): return 0\ndef half(x): return 3", check, **options)) == (1, 1, 1, 0)


def test_each_statement_of_asserts_counts() -> None:
    verdict = asserts(CANDIDATE, "assert double(2) == 4", "assert double(2) == 5", "assert absent(1)", "assert LIMITS")
    assert counts(verdict) == (4, 4, 3, 0)
    assert verdict["first_failure"] == "assert double(2) == 5: AssertionError"


def test_a_function_named_like_a_builtin_can_be_tested() -> None:
    assert counts(asserts("def sum(a, b): return a + b", "assert sum(10, 15) == 25")) == (1, 1, 0, 0)


def test_a_module_that_tests_forgot_to_import_is_not_the_candidates() -> None:
    hostile = "class math:\n    def isclose(*_): return True\ndef half(x): return 0\n"
    assert counts(asserts(hostile, "assert math.isclose(half(3), 1.5)")) == (1, 1, 1, 0)
    assert counts(asserts("def half(x): return x / 2", "assert math.isclose(half(3), 1.5)")) == (1, 1, 0, 0)


SHADOWS = {
    "abs": "def abs(x): return 0\n",
    "range": "def range(*a): return []\n",
    "len": "def len(x): return 1\n",
    "zip": "def zip(*a): return []\n",
    "all": "def all(x): return True\n",
    "isclose": "def isclose(*a, **k): return True\n",
    "math": "class math:\n    def isclose(*a): return True\n    def fabs(x): return 0\n",
}
RIGHT_AND_WRONG = {4: (1, 1, 0, 0), 0: (1, 1, 1, 0)}


def solve(result: int, shadow: str) -> str:
    return f"{SHADOWS[shadow]}def solve(x): return {result}\n"


@pytest.mark.parametrize(
    ("shadow", "statement"),
    [
        ("abs", "assert abs(candidate(1) - 4) < 1e-6"),
        ("abs", "assert abs(solve(1) - 4) < 1e-6"),
        ("range", "for i in range(3): assert candidate(i) == 4"),
        ("isclose", "assert isclose(candidate(1), 4)"),
        ("math", "assert math.fabs(candidate(1) - 4) < 1e-6"),
        ("zip", "for x, y in zip([1, 2], [4, 4]): assert candidate(x) == y"),
        ("len", "assert len([0] * candidate(1)) == 4"),
        ("all", "assert all(candidate(i) == 4 for i in (1, 2))"),
    ],
)
def test_a_candidate_lends_humaneval_nothing_but_the_entry_point(shadow: str, statement: str) -> None:
    check = f"def check(candidate):\n    {statement}\n"
    for result, counted in RIGHT_AND_WRONG.items():
        verdict = run_tests(solve(result, shadow), check, style="humaneval", entry_point="solve")
        assert counts(verdict) == counted, verdict


@pytest.mark.parametrize(
    ("shadow", "statement"),
    [
        ("isclose", "assert isclose(solve(1), 4)"),
        ("math", "assert math.isclose(solve(1), 4)"),
        ("abs", "assert abs(solve(1) - 4) < 1e-6"),
        ("len", "assert len([0] * solve(1)) == 4"),
        ("all", "assert all(solve(i) == 4 for i in range(2))"),
    ],
)
def test_a_candidate_lends_asserts_nothing_that_they_mean_otherwise(shadow: str, statement: str) -> None:
    for result, counted in RIGHT_AND_WRONG.items():
        verdict = asserts(solve(result, shadow), statement)
        assert counts(verdict) == counted, verdict


@pytest.mark.parametrize(
    ("shadow", "statement"),
    [
        ("abs", "self.assertTrue(abs(solution.solve(1) - 4) < 1e-6)"),
        ("range", "for i in range(3): self.assertEqual(solution.solve(i), 4)"),
        ("zip", "for x, y in zip([1, 2], [4, 4]): self.assertEqual(solution.solve(x), y)"),
        ("len", "self.assertEqual(len([0] * solution.solve(1)), 4)"),
    ],
)
def test_a_candidate_lends_a_test_file_nothing_that_it_means_otherwise(shadow: str, statement: str) -> None:
    source = (
        "import unittest\nimport solution\nclass Test(unittest.TestCase):\n"
        f"    def test_solve(self):\n        {statement}\n"
    )
    for result, counted in RIGHT_AND_WRONG.items():
        verdict = run_tests(solve(result, shadow), source, style="unittest")
        assert counts(verdict) == counted, verdict


@pytest.mark.parametrize(
    ("style", "source", "options"),
    [
        ("humaneval", "def check(candidate):\n    assert True\n", {"entry_point": "f"}),
        ("asserts", "", {"statements": ["assert True"]}),
        ("unittest", "import unittest, solution\nclass T(unittest.TestCase):\n    def test_f(self): pass\n", {}),
        ("pytest", "import solution\ndef test_f(): pass\n", {}),
    ],
)
def test_tests_that_never_call_the_candidate_fail(style: str, source: str, options: dict[str, Any]) -> None:
    verdict = run_tests("def f(x): return x", source, style=style, **options)
    assert verdict["failed"] == 1
    assert "the tests never called it" in verdict["first_failure"]


UNITTEST = """
import unittest
from solution import LIMIT, Empty, Node, adder, double, later, link, pop
import asyncio

class Test(unittest.TestCase):
    def test_plain(self):
        self.assertEqual(double({1: (2,)}[1]), (2, 2))
        self.assertEqual(LIMIT, 7)
    def test_changes_arguments(self):
        items = [1, 2, [3]]
        self.assertEqual(pop(items), [3])
        self.assertEqual(items, [1, 2])
    def test_exceptions(self):
        with self.assertRaises(Empty) as caught:
            pop([])
        self.assertEqual(str(caught.exception), "nothing to pop")
        with self.assertRaises(IndexError):
            pop([])
        with self.assertRaises(TypeError):
            double()
    def test_objects(self):
        node = link(Node(1), Node(2))
        self.assertEqual((node.v, node.next.v, node.values()), (1, 2, [1, 2]))
        self.assertEqual((len(node), list(node), node[1]), (2, [1, 2], 2))
        node.v = 5
        self.assertIn(5, node)
        self.assertNotIn(1, Node(3))
        self.assertTrue(Node(3).startswith(3))
        self.assertIsInstance(node, Node)
        self.assertIsNone(node.next.next)
        self.assertEqual((Node.limit, Node.of(1, 2, 3).values()), (5, [1, 2, 3]))
        self.assertFalse(hasattr(node, "absent"))
        self.assertEqual(node.absent if hasattr(node, "absent") else 1, 1)
    def test_functions_that_functions_return(self):
        self.assertEqual(adder(2)(3), 5)
    def test_coroutines(self):
        self.assertEqual(asyncio.run(later(3)), 3)
    @unittest.expectedFailure
    def test_known_bug(self):
        self.assertEqual(double(1), 3)

if __name__ == "__main__":
    unittest.main()
"""


def test_unittest_files_run() -> None:
    assert run_tests(CANDIDATE, UNITTEST, style="unittest") == {**PASSED, "run": 7, "collected": 7}


def test_skips_errors_and_unexpected_successes_of_unittest_are_counted() -> None:
    source = (
        "import unittest\nfrom candidate import double\n"
        "class Test(unittest.TestCase):\n"
        "    def test_a(self): self.skipTest('no')\n"
        "    def test_b(self): raise SystemExit(0)\n"
        "    @unittest.expectedFailure\n"
        "    def test_c(self): self.assertEqual(double(1), 2)\n"
        "    def test_d(self): self.assertEqual(double(1), 3)\n"
    )
    verdict = run_tests(CANDIDATE, source, style="unittest", module_names=["candidate"])
    assert counts(verdict) == (4, 4, 3, 1)
    assert verdict["first_failure"].startswith("test_d")
    assert verdict["first_failure"].endswith("AssertionError: 2 != 3")


PYTEST = """
import pytest
from solution import Empty, double, pop

@pytest.fixture
def two(): return 2

@pytest.mark.parametrize("x", [1, 2, 3])
def test_double(x, two): assert double(x) == pytest.approx(x * two)

class TestPop:
    def setup_method(self): self.items = [1]
    def test_pop(self): assert pop(self.items) == 1 and self.items == []
    def test_empty(self):
        with pytest.raises(Empty, match="nothing"): pop([])

def test_files(tmp_path): (tmp_path / "a").write_text("b")

@pytest.mark.xfail
def test_known_bug(): assert double(1) == 3
"""


def test_pytest_files_run_with_fixtures_and_parameters() -> None:
    assert run_tests(CANDIDATE, PYTEST, style="pytest") == {**PASSED, "run": 7, "collected": 7}


def test_skips_errors_and_unexpected_successes_of_pytest_are_counted() -> None:
    source = (
        "import pytest\nfrom solution import double\n"
        "@pytest.fixture\ndef broken(): raise ValueError('in the fixture')\n"
        "def test_a(broken): pass\n"
        "@pytest.mark.skip\ndef test_b(): pass\n"
        "def test_c(): pytest.skip('no')\n"
        "@pytest.mark.xfail\ndef test_d(): assert double(1) == 2\n"
        "def test_e(): assert double(1) == 3\n"
    )
    verdict = run_tests(CANDIDATE, source, style="pytest")
    assert counts(verdict) == (5, 3, 3, 2)
    assert "in the fixture" in verdict["first_failure"]


@pytest.mark.parametrize("style", ["unittest", "pytest"])
@pytest.mark.parametrize("source", ["", "def broken(:", "from solution import absent\ndef test_a(): pass", "exit(0)"])
def test_a_test_file_without_a_test_that_ran_never_passes(style: str, source: str) -> None:
    collected, run, failed, _ = counts(run_tests(CANDIDATE, source, style=style))
    assert failed > 0 or run == collected == 0


DECIDED_BY_THE_RESULT = [
    "assert f(1) == 3.14",
    "assert 3.14 == f(1)",
    "assert abs(f(1) - 3.14) < 1e-6",
    "assert abs(3.14 - f(1)) < 1e-6",
    "assert f(1) * 2 < 7",
    "assert f(1) < 4",
    "assert 3 in f(1)",
    "assert f(1) in [3.14]",
    "assert f(1) in {3.14}",
    "assert f(1) not in {7}",
    "assert f(1) != [3]",
    "assert [1, f(1)] == [1, 3.14]",
    "assert f(1).startswith('abc')",
    "assert f(1).issubset({1, 2})",
    "assert f(1).is_integer()",
    "assert math.isclose(f(1), 3.14)",
    "assert isinstance(f(1), float)",
    "import unittest; unittest.TestCase().assertAlmostEqual(f(1), 3.14)",
]

HOSTILE_OBJECT = """
class Evil:
    def __init__(self, *a): pass
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    __rsub__ = __mul__ = __rmul__ = __add__ = __radd__ = __pow__ = __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __abs__(self): return 0
    def __hash__(self): return 0
    def __float__(self): return 3.14
    def __bool__(self): return True
    def __iter__(self): return iter([])
    def __getattr__(self, name): return lambda *a: True
class Int(int):
    __eq__ = __lt__ = lambda self, other: True
    __hash__ = int.__hash__
class Text(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__
"""


@pytest.mark.parametrize("returned", ["Evil()", "Int(0)", "Text('')", "[Evil()]", "Evil", "print", "..."])
def test_no_object_that_a_candidate_returns_decides_a_test(returned: str) -> None:
    verdict = asserts(f"{HOSTILE_OBJECT}\ndef f(x): return {returned}", *DECIDED_BY_THE_RESULT)
    assert verdict["failed"] == len(DECIDED_BY_THE_RESULT)


NAMED = """
import collections, enum, typing
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2
class Name(enum.StrEnum):
    RED = "red"
class Point(typing.NamedTuple):
    x: int
    y: int = 0
    def norm(self): return abs(self.x) + abs(self.y)
Pair = collections.namedtuple("Pair", "left right")
def move(p): return Point(p[0] + 1, p[1])
def level(n): return Level(n)
def name(): return Name.RED
def nested(): return {"a": [Pair(Point(1, 2), Level.LOW)]}
def put(items): items.append(Point(1, 2))
def area(p): return p.x * p.y
"""


@pytest.mark.parametrize(
    "statement",
    [
        "assert move((1, 2)) == (2, 2)",
        "assert (2, 2) == move((1, 2)) != (2, 3)",
        "assert move((1, 2)).x == 2 and move((1, 2)).norm() == 4 and move((1, 2))._fields == ('x', 'y')",
        "x, y = move((1, 2)); assert (x, y) == (2, 2)",
        "assert isinstance(move((1, 2)), Point) and isinstance(move((1, 2)), tuple)",
        "assert {move((1, 2)): 1}[(2, 2)] == 1 and move((1, 2)) in [(2, 2)]",
        "assert area(move((1, 2))) == 4 and area(Point(2, 3)) == 6 and Point(2, 3).norm() == 5",
        "assert repr(move((1, 2))) == 'Point(x=2, y=2)'",
        "assert level(2) == 2 and level(2) < 3 and level(2) + 1 == 3 and level(2).name == 'HIGH'",
        "assert name() == 'red' and name().upper() == 'RED' and name().value == 'red'",
        "assert nested() == {'a': [((1, 2), 1)]} and nested()['a'][0].left.x == 1",
        "items = []; put(items); assert items == [(1, 2)]",
        "assert sorted([move((3, 0)), move((1, 0))])[0] == (2, 0)",
    ],
)
def test_named_tuples_and_members_are_what_they_are_and_have_their_names(statement: str) -> None:
    verdict = asserts(NAMED, statement)
    assert counts(verdict) == (1, 1, 0, 0), verdict


@pytest.mark.parametrize("statement", ["assert level(1) == Level.LOW", "assert move((1, 2)) == Point(2, 2)"])
def test_what_the_candidate_made_as_the_expected_value_is_not_compared(statement: str) -> None:
    """It could make everything equal to its results."""
    verdict = asserts(NAMED, statement)
    assert "cannot be compared" in verdict["first_failure"]


def test_a_named_tuple_or_member_that_lies_about_itself_decides_no_test() -> None:
    lies = (
        "import enum, collections\n"
        "class Pair(collections.namedtuple('Pair', 'x y')):\n"
        "    __eq__ = __lt__ = __contains__ = lambda self, other: True\n"
        "    __ne__ = lambda self, other: False\n"
        "    __hash__ = tuple.__hash__\n"
        "    __getitem__ = lambda self, i: 3.14\n"
        "    __iter__ = lambda self: iter([3.14])\n"
        "    __sub__ = __rsub__ = lambda self, other: 0\n"
        "    startswith = issubset = is_integer = lambda self, *a: True\n"
        "class Level(enum.IntEnum):\n"
        "    LOW = 100\n"
        "    __eq__ = __lt__ = lambda self, other: True\n"
        "    __hash__ = int.__hash__\n"
        "    __abs__ = __sub__ = __rsub__ = __mul__ = lambda self, *a: 0\n"
        "    __float__ = lambda self: 3.14\n"
        "    startswith = issubset = is_integer = lambda self, *a: True\n"
        "def f(x): return "
    )
    right = {"assert f(1) != [3]", "assert f(1) not in {7}"}
    statements = [statement for statement in DECIDED_BY_THE_RESULT if statement not in right]
    for returned in ("Pair(0, 0)", "Level.LOW"):
        assert asserts(lies + returned, *statements)["failed"] == len(statements)


def test_a_class_in_the_place_of_a_function_decides_no_test() -> None:
    verdict = asserts(f"{HOSTILE_OBJECT}\nclass f(Evil): pass", *DECIDED_BY_THE_RESULT)
    assert verdict["failed"] == len(DECIDED_BY_THE_RESULT)


@pytest.mark.parametrize(
    "name", ["isclose", "sorted", "len", "check", "half", "AssertionError", "unittest", "approx", "Test", "load_tests"]
)
def test_a_candidates_names_do_not_shadow_what_the_tests_use(name: str) -> None:
    hostile = f"class {name}(Exception):\n    def __new__(cls, *_, **__): return True\ndef f(x): return x + 1\n"
    source = (
        "import unittest\nfrom math import isclose\nfrom pytest import approx\nfrom solution import *\n"
        "def half(x): return x / 2\n"
        "class Test(unittest.TestCase):\n"
        "    def test_a(self): assert isclose(f(1), 1)\n"
        "    def test_b(self): assert sorted([f(1)]) == [1]\n"
        "    def test_c(self): assert half(f(1)) == .5\n"
        "    def test_d(self): assert len([f(1)] * f(1)) == 1\n"
        "    def test_e(self): assert f(1) == approx(1)\n"
    )
    assert counts(run_tests(hostile, source, style="unittest")) == (5, 5, 5, 0)


@pytest.mark.parametrize(
    ("hostile", "violations"),
    [
        ('import os\nos.write(4, b\'{"id": 1, "value": 4}\\n\')', 1),
        ('import os\nos.write(4, b\'{"ready": {"functions": ["__class__", 3]}}\\n\')', 1),
        ("import os\nos.write(4, b'[' * 100000 + b'\\n')", 1),
        ('import os\ndef f(x):\n    os.write(4, b\'{"id": 99, "value": 4}\\n\'); os._exit(0)', 1),
        ('import os\ndef f(x):\n    os.write(4, b\'{"id": 1, "value": {"x": 4}}\\n\'); os._exit(0)', 1),
        ('import os\ndef f(x):\n    os.write(4, b\'{"id": 1, "value": 1e9}\\n\'); os._exit(0)', 1),
        ("import os\ndef f(x):\n    os.write(4, b'[]\\n'); os._exit(0)", 1),
        ("import os\ndef f(x):\n    for _ in range(80): os.write(4, b'1' * 65536)", 1),
        ('import os\ndef f(x): os.write(4, b\'{"id": 1, "value": 4}\\n{"id": 2, "value": 4}\\n\'); os._exit(0)', 1),
        ("import os\ndef f(x): os._exit(0)", 0),
        ("import os\ndef f(x): os.close(4)", 0),
        ("import sys\nsys.exit(1)", 0),
    ],
)
def test_a_candidate_that_breaks_the_protocol_fails(hostile: str, violations: int) -> None:
    """Even where the tests are content with any result and any exception."""
    statement = "try: f(2)\nexcept Exception: pass"
    verdict = asserts(hostile, statement, statement)
    assert verdict["failed"] == 1
    assert verdict["violations"] == violations


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "BaseException"])
def test_an_exception_that_would_end_the_tests_becomes_an_error(name: str) -> None:
    verdict = asserts(f"def f(x): raise {name}(0)", "assert f(1) == 1", "assert list(map(f, [1])) == []")
    assert counts(verdict) == (2, 2, 2, 0)
    assert "CandidateError" in verdict["first_failure"]


def test_an_argument_that_cannot_cross_is_named() -> None:
    verdict = asserts("def f(g): return g(1)", "assert f(lambda x: x) == 1")
    assert "f: an argument cannot cross to the candidate: function" in verdict["first_failure"]


def test_tests_and_candidate_may_share_a_process() -> None:
    source = "import solution\nassert solution.f is f\n"
    verdict = asserts("", "assert f(lambda x: x) == 1", setup=source, candidate="def f(g): return g(1)")
    assert counts(verdict) == (1, 1, 0, 0)
    broken = asserts("", "assert f(1) == 1", candidate="1 / 0")
    assert counts(broken) == (1, 0, 1, 0)
