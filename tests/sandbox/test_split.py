"""Test code and judged code in two slots: what solves the task passes, and no trick on the tests does. Real slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from funicular.rewards.sandbox import split
from funicular.rewards.sandbox.formats import parse_tests
from funicular.rewards.sandbox.split import Verdict, read_verdict
from funicular.rewards.sandbox.types import Integrity, Limits, Outcome
from tests.judge_slots import BRIEF, OUT_OF_TIME, Slots, started_slots

ASSERTS = parse_tests(["assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == 1"])
HUMANEVAL = parse_tests(
    {"test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n", "entry_point": "f"}
)
UNITTEST = parse_tests(
    "import unittest\nfrom solution import f\nclass TestF(unittest.TestCase):\n    def test_two(self):\n"
    "        self.assertEqual(f(2), 4)\n    def test_three(self):\n        self.assertEqual(f(3), 9)\n"
)
PYTEST = parse_tests(
    "import pytest\nfrom solution import f\n@pytest.mark.parametrize('x', [2, 3])\n"
    "def test_f(x):\n    assert f(x) == x * x\n"
)
STYLES = {"asserts": ASSERTS, "humaneval": HUMANEVAL, "unittest": UNITTEST, "pytest": PYTEST}
RIGHT = "def f(x):\n    return x * x\n"


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    yield from started_slots()


@pytest.fixture(autouse=True)
def _next_submission_is_unharmed(slots: Slots) -> Iterator[None]:
    yield
    assert slots.judge(RIGHT, ASSERTS).passed


@pytest.mark.parametrize("style", STYLES)
def test_a_solution_passes_in_every_style(slots: Slots, style: str) -> None:
    judgement = slots.judge(RIGHT, STYLES[style])
    assert judgement.outcome is Outcome.OK, judgement.detail
    assert judgement.tests_passed == judgement.tests_run == judgement.tests_total > 0
    assert (judgement.integrity, judgement.level, judgement.detail) == (Integrity.STRONG, slots.level, "")
    assert judgement.cpu_s > 0


@pytest.mark.parametrize("style", STYLES)
def test_a_wrong_function_fails_in_every_style(slots: Slots, style: str) -> None:
    judgement = slots.judge("def f(x):\n    return 4\n", STYLES[style])
    assert judgement.outcome is Outcome.WRONG
    assert judgement.tests_passed < judgement.tests_total
    assert "failed" in judgement.detail


def test_counts_say_how_many_statements_hold(slots: Slots) -> None:
    judgement = slots.judge("def f(x):\n    return 4 if x == 2 else 1\n", ASSERTS)
    assert (judgement.tests_passed, judgement.tests_run, judgement.tests_total) == (2, 3, 3)
    assert judgement.detail.startswith("of 3 tests 1 failed: assert f(3) == 9")


TRICKS: list[tuple[str, set[Outcome]]] = [
    ("", {Outcome.WRONG}),
    ("def g(x): return x * x", {Outcome.WRONG}),
    ("f = 4", {Outcome.WRONG}),
    ("raise SystemExit(0)", {Outcome.WRONG, Outcome.RUNTIME_ERROR}),
    ("import os; os._exit(0)", {Outcome.RUNTIME_ERROR}),
    ("import os\ndef f(x): os._exit(0)", {Outcome.RUNTIME_ERROR}),
    ("def f(x): raise SystemExit(0)", {Outcome.WRONG}),
    ("import unittest\ndef f(x): raise unittest.SkipTest('later')", {Outcome.WRONG}),
    ("import unittest\nclass E(unittest.SkipTest): pass\ndef f(x): raise E", {Outcome.WRONG}),
    (
        "class E(BaseException): pass\nE.__module__ = '_pytest.outcomes'\ndef f(x): raise E",
        {Outcome.WRONG},
    ),
    ("def f(x): raise StopIteration", {Outcome.WRONG}),
    ("def f(x): raise GeneratorExit", {Outcome.WRONG}),
    ("def f(x): raise KeyboardInterrupt", {Outcome.WRONG}),
    ("def f(x): raise AssertionError", {Outcome.WRONG}),
    ("class A:\n    def __eq__(self, o): return True\ndef f(x): return A()", {Outcome.WRONG}),
    (
        "class A(int):\n    def __eq__(self, o): return True\ndef f(x): return A(7)",
        {Outcome.WRONG},
    ),
    ("class A(list):\n    def __eq__(self, o): return True\ndef f(x): return A()", {Outcome.WRONG}),
    (
        "def sorted(*a): return [1]\ndef len(x): return 3\ndef f(x): return 0",
        {Outcome.WRONG},
    ),
    ("def check(candidate): pass\ndef candidate(x): return 0\ndef f(x): return 0", {Outcome.WRONG}),
    (
        "class AssertionError(Exception): pass\nclass unittest: pass\ndef f(x): return 0",
        {Outcome.WRONG},
    ),
    ("import builtins\nbuiltins.AssertionError = SystemExit\ndef f(x): return 0", {Outcome.WRONG}),
    ("import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return 0", {Outcome.WRONG}),
    ("import sys\nsys.modules['solution'] = None\ndef f(x): return 0", {Outcome.WRONG}),
    (
        "open('conftest.py', 'w').write('1/0')\ndef f(x): return 0",
        {Outcome.WRONG, Outcome.FORBIDDEN},
    ),
    (
        'import os\ntry: os.write(3, b\'{"run":3,"failed":0,"skipped":0,"collected":3}\\n\')\nexcept OSError: pass\n'
        "def f(x): return 0",
        {Outcome.WRONG},
    ),
    ("def f(x):\n    while True: pass", OUT_OF_TIME),
    ("import time\ndef f(x): time.sleep(60)", {Outcome.WALL}),
    ("def f(x): return f(x)", {Outcome.WRONG}),
    ("x = bytearray(4 << 30)", {Outcome.MEMORY}),
    ("def f(x): return 'x' * (8 << 20)", {Outcome.WRONG, Outcome.MEMORY}),
    ("import os\nos.write(4, b'{\"ready\":{}}\\n')\ndef f(x): return x * x", {Outcome.PROTOCOL}),
    ('import os\ndef f(x): os.write(4, b\'{"id":1,"value":4}\\n\'); return x * x', {Outcome.PROTOCOL}),
    ("import os\ndef f(x): os.write(4, b'[]\\n'); os._exit(0)", {Outcome.PROTOCOL}),
    ("import os\ndef f(x):\n    while True: os.write(4, b'x' * 65536)", {Outcome.PROTOCOL}),
    (
        "import os, time\nnames = b'\"a\",' * 300_000\n"
        'os.write(4, b\'{"ready":{"functions":[\' + names + b\'"f"]}}\\n\'); time.sleep(60)',
        {Outcome.PROTOCOL},
    ),
]


@pytest.mark.parametrize(("source", "allowed"), TRICKS)
@pytest.mark.parametrize("style", ["asserts", "unittest"])
def test_no_trick_on_tests_passes(slots: Slots, style: str, source: str, allowed: set[Outcome]) -> None:
    judgement = slots.judge(source, STYLES[style], limits=BRIEF)
    assert judgement.outcome in allowed, judgement.detail
    assert judgement.tests_passed < judgement.tests_total
    assert (judgement.signals.protocol_violations > 0) == (judgement.outcome is Outcome.PROTOCOL)


ANYTHING = """
class A:
    def same(self, *a): return self
    def zero(self, *a): return 0
    def yes(self, *a): return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = yes
    __ne__ = lambda self, o: False
    __sub__ = __rsub__ = __abs__ = __mul__ = __rmul__ = __pow__ = __round__ = __float__ = __int__ = __index__ = zero
    __add__ = __radd__ = __truediv__ = __mod__ = __floordiv__ = __neg__ = zero
    __hash__ = zero
    __len__ = __bool__ = lambda self: 1
    __iter__ = lambda self: iter([3])
    __instancecheck__ = yes
def f(*a): return A()
"""


@pytest.mark.parametrize(
    "statement",
    [
        "assert f(2) == 4",
        "assert not f(2) != 4",
        "assert 4 == f(2)",
        "assert [f(2)] == [4]",
        "assert f(2) in (4, 5)",
        "assert 4 in f(2)",
        "assert abs(f(2) - 4) < 1e-6",
        "assert abs(4 - f(2)) < 1e-6",
        "assert f(2) - 4 == 0",
        "assert f(2) <= 4",
        "assert 3 < f(2)",
        "assert 3 < f(2) < 5",
        "assert round(f(2), 2) == 4.0",
        "import math\nassert math.isclose(f(2), 4)",
        "import math\nassert math.fabs(1 + 3 * f(2) + f(2) ** 2) < 1e-4",
        "import numpy\nassert numpy.allclose(f(2), 4)",
        "import numpy\nassert (numpy.array([4]) == f(2)).all()",
        "assert isinstance(f(2), int)",
        "assert {4: 1}[f(2)] == 1",
        "assert str(f(2)) == '4'",
        "assert float(f(2)) == 4.0",
        "assert sorted([f(2), 3]) == [3, 4]",
        "assert max(f(2), 4) == 4 and min(f(2), 4) == 4",
        "assert f(2) % 4 == 0",
        "assert f(2) is f(2) or f(2) == f(2)",
        "import unittest\nunittest.TestCase().assertEqual(f(2), 4)",
        "import unittest\nunittest.TestCase().assertAlmostEqual(f(2), 4.0)",
        "import unittest\nunittest.TestCase().assertIn(4, f(2))",
        "import unittest\nunittest.TestCase().assertLess(f(2), 5)",
        "import unittest\nunittest.TestCase().assertCountEqual(f(2), [4])",
        "from unittest.mock import ANY\nassert f(2) == 4",
    ],
)
def test_an_object_that_agrees_with_everything_passes_nothing(slots: Slots, statement: str) -> None:
    judgement = slots.judge(ANYTHING, parse_tests([statement]))
    assert judgement.outcome is Outcome.WRONG, judgement.detail
    honest = slots.judge("def f(*a): return 4 if a == (2,) else a", parse_tests(["assert f(2) == 4"]))
    assert honest.passed


def test_plain_data_crosses_and_arguments_are_changed_in_place(slots: Slots) -> None:
    source = "def f(x):\n    x.sort()\n    return {'k': (1, 2.5, None, b'b', {3})}\n"
    statements = ["x = [3, 1]\nassert f(x) == {'k': (1, 2.5, None, b'b', {3})}\nassert x == [1, 3]"]
    assert slots.judge(source, parse_tests(statements)).passed


def test_exceptions_reach_the_tests(slots: Slots) -> None:
    tests = parse_tests(
        "import unittest\nfrom solution import f, Odd\nclass T(unittest.TestCase):\n    def test_raises(self):\n"
        "        with self.assertRaises(ZeroDivisionError): f(0)\n        with self.assertRaises(Odd): f(1)\n"
    )
    right = "class Odd(ValueError): pass\ndef f(x):\n    if x: raise Odd(x)\n    return 1 / x\n"
    assert slots.judge(right, tests).passed
    assert slots.judge(right.replace("1 / x", "x"), tests).outcome is Outcome.WRONG
    dying = "import os\nclass Odd(ValueError): pass\ndef f(x): os._exit(0)\n"
    assert slots.judge(dying, tests).outcome is Outcome.RUNTIME_ERROR


@pytest.mark.parametrize(
    "source",
    [
        "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('no')\n    def test_f(self): pass\n",
        "import unittest\nclass T(unittest.TestCase):\n    pass\n",
        "import pytest\nfrom solution import f\n@pytest.mark.skip\ndef test_f(): assert f(2) == 4\n",
        "import pytest\nfrom solution import f\ndef test_f():\n    pytest.skip('no')\n",
    ],
)
def test_skipped_and_missing_tests_fail(slots: Slots, source: str) -> None:
    judgement = slots.judge(RIGHT, parse_tests(source))
    assert judgement.outcome is Outcome.WRONG
    assert judgement.tests_passed == 0


def test_tests_that_die_by_themselves_are_our_fault(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "_TESTER_CPU_S", 0.3)
    judgement = slots.judge(RIGHT, parse_tests(["import os\nos._exit(0)\nassert True"]))
    assert judgement.outcome is Outcome.INFRA_ERROR
    assert (judgement.tests_passed, judgement.tests_run) == (0, 0)
    busy = slots.judge(RIGHT, parse_tests(["while True: pass\nassert True"]), limits=Limits(cpu_s=0.1))
    assert busy.outcome is Outcome.INFRA_ERROR


def test_a_candidate_is_not_blamed_for_waiting_for_slow_tests(slots: Slots) -> None:
    tests = parse_tests(["import time; time.sleep(5)\nassert f(2) == 4"])
    slow = slots.judge(RIGHT, tests, limits=Limits(cpu_s=0.5))  # it may wait for 4.5 s
    assert slow.outcome is Outcome.INFRA_ERROR
    assert "before they called the candidate" in slow.detail


def test_a_candidate_that_loads_until_its_time_is_over_is_blamed(slots: Slots) -> None:
    tests = parse_tests(["import time; time.sleep(1)\nassert f(2) == 4"])
    loading = f"import time; time.sleep(3.8)\n{RIGHT}"
    assert slots.judge(loading, tests, limits=Limits(cpu_s=0.5)).outcome is Outcome.WALL
    spinning = f"{RIGHT}import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()"
    slow = parse_tests(["import time; time.sleep(5)\nassert f(2) == 4"])
    assert slots.judge(spinning, slow, limits=Limits(cpu_s=0.5)).outcome in OUT_OF_TIME


def test_a_result_that_exhausts_the_tests_is_the_candidates_fault(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "_TESTER_CPU_S", 0.3)
    tests = parse_tests(["n = f(2)\nwhile n: n += 1\nassert True"])
    assert slots.judge("def f(x): return 0", tests).passed
    judgement = slots.judge("def f(x): return 1", tests, limits=Limits(cpu_s=0.2))
    assert judgement.outcome in (Outcome.WALL, Outcome.CPU)
    assert judgement.tests_passed == 0


def test_helpers_of_the_prompt_are_there_for_the_tests(slots: Slots) -> None:
    prompt = "def twice(x):\n    return 2 * x\n\ndef f(x):\n    '''The square.'''\n"
    row = {"test": "def check(candidate):\n    assert twice(candidate(2)) == 8\n", "entry_point": "f", "prompt": prompt}
    assert slots.judge(RIGHT, parse_tests(row)).passed
    cheating = "def twice(x): return 8\ndef f(x): return 0\n"
    assert slots.judge(cheating, parse_tests(row)).outcome is Outcome.WRONG


@pytest.mark.parametrize("style", ["asserts", "humaneval", "unittest"])
def test_weak_tests_run_only_where_that_is_accepted_and_say_so(slots: Slots, style: str) -> None:
    raw: dict[str, Any] = {
        "asserts": ["assert f(2) == 4", "assert f(3) == 9"],
        "humaneval": {"test": HUMANEVAL.source, "entry_point": "f"},  # type: ignore[union-attr]
        "unittest": UNITTEST.source,  # type: ignore[union-attr]
    }
    tests = parse_tests(raw[style], same_process=True)
    with pytest.raises(ValueError, match="allow_weak_integrity"):
        slots.judge(RIGHT, tests)
    judgement = slots.judge(RIGHT, tests, allow_weak=True)
    assert (judgement.outcome, judgement.integrity) == (Outcome.OK, Integrity.WEAK), judgement.detail
    wrong = slots.judge("def f(x): return 4", tests, allow_weak=True)
    assert (wrong.outcome, wrong.integrity) == (Outcome.WRONG, Integrity.WEAK)
    assert slots.judge("import os; os._exit(0)", tests, allow_weak=True).outcome is Outcome.RUNTIME_ERROR


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"run":1,"failed":0,"skipped":0,"collected":1}',
        b'{"run":1,"failed":0,"skipped":0}\n',
        b'{"run":true,"failed":0,"skipped":0,"collected":1}\n',
        b'{"run":1.0,"failed":0,"skipped":0,"collected":1}\n',
        b'{"run":-1,"failed":0,"skipped":0,"collected":-1}\n',
        b'{"run":1,"failed":1,"skipped":0,"collected":1}\n{"run":1,"failed":0,"skipped":0,"collected":1}\n',
        b"[" * 60_000 + b"\n",
        b'{"run":1,"failed":0,"skipped":0,"collected":1,"first_failure":"' + b"x" * 70_000 + b'"}\n',
    ],
)
def test_what_is_no_verdict_is_none(written: bytes) -> None:
    assert read_verdict(written) is None


@pytest.mark.parametrize(
    ("counts", "passed"),
    [
        ((1, 0, 0, 1, 0), True),
        ((0, 0, 0, 0, 0), False),
        ((1, 0, 0, 2, 0), False),
        ((2, 0, 0, 1, 0), False),
        ((1, 1, 0, 1, 0), False),
        ((1, 0, 1, 1, 0), False),
        ((1, 0, 0, 1, 1), False),
    ],
)
def test_only_a_complete_run_without_failures_passes(counts: tuple[int, int, int, int, int], passed: bool) -> None:
    run, failed, skipped, collected, violations = counts
    verdict = Verdict(
        run=run, failed=failed, skipped=skipped, collected=collected, violations=violations, first_failure=""
    )
    assert verdict.passed is passed
