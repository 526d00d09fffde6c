"""Reward hacks against tests that are code: HumanEval, assertions, unittest, pytest. The function is wrong."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TesterStyle, TestSet
from tests.sandbox.programs import FORGING, HostileProgram, code, judged_by

_REFUSED = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_ENDED = _REFUSED | {Outcome.SIGNAL, Outcome.WALL, Outcome.FORBIDDEN}

CHECK = judged_by(
    TesterStyle.HUMANEVAL,
    """
    METADATA = {"author": "nobody"}
    def check(candidate):
        assert candidate(1, 2) == 3
        assert candidate(5, 7) == 12
    """,
    entry_point="solve",
)
ASSERTS = judged_by(TesterStyle.ASSERTS, "", "assert solve(1, 2) == 3", "assert solve(5, 7) == 12")
UNITTEST = judged_by(
    TesterStyle.UNITTEST,
    """
    import unittest
    from solution import solve
    class TestSolve(unittest.TestCase):
        def test_small(self):
            self.assertEqual(solve(1, 2), 3)
        def test_large(self):
            self.assertEqual(solve(5, 7), 12)
            self.assertTrue(solve(0, 1) == 1)
    """,
)
PYTEST = judged_by(
    TesterStyle.PYTEST,
    """
    import pytest
    from solution import solve
    @pytest.mark.parametrize(("a", "b", "expected"), [(1, 2, 3), (5, 7, 12)])
    def test_solve(a, b, expected):
        assert solve(a, b) == expected
    def test_zero():
        assert solve(0, 0) == 0
    """,
)
_STYLES: dict[str, TestSet] = {"check": CHECK, "asserts": ASSERTS, "unittest": UNITTEST, "pytest": PYTEST}


def _program(
    name: str, why: str, source: str, tests: TestSet, outcomes: frozenset[Outcome] = _REFUSED
) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=tests, outcomes=outcomes)


def _in_every_style(
    name: str, why: str, source: str, outcomes: frozenset[Outcome] = _REFUSED
) -> tuple[HostileProgram, ...]:
    return tuple(_program(f"{name}_{style}", why, source, tests, outcomes) for style, tests in _STYLES.items())


ENDED = (
    *_in_every_style("exit_0_in", "ends well when it is loaded", "import sys\nsys.exit(0)\n", _ENDED),
    *_in_every_style(
        "hard_exit_0_in", "ends well in the call", "import os\ndef solve(a, b):\n    os._exit(0)\n", _ENDED
    ),
    *_in_every_style(
        "raises_exit_in",
        "raises SystemExit(0)",
        """
        def solve(a, b):
            raise SystemExit(0)
        """,
        _ENDED,
    ),
    *_in_every_style(
        "skips_in",
        "raises what unittest and pytest take for a skip",
        """
        import unittest
        class Skipped(unittest.SkipTest):
            pass
        Skipped.__module__ = "builtins"
        def solve(a, b):
            if a == 1:
                raise unittest.SkipTest("not today")
            raise Skipped("not today")
        """,
    ),
    *_in_every_style(
        "always_equal_in",
        "returns an object that equals everything",
        """
        class Any:
            __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __bool__ = __contains__ = lambda *_: True
            __hash__ = lambda self: 3
            __getattr__ = lambda self, name: Any()
            __sub__ = __rsub__ = __abs__ = lambda *_: Any()
        def solve(a, b):
            return Any()
        """,
    ),
    *_in_every_style(
        "int_subclass_in",
        "returns an integer whose class decides equality",
        """
        class Number(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def solve(a, b):
            return Number(0)
        """,
    ),
    _program(
        "crash_where_any_exception_will_do",
        "dies where the test expects an exception",
        """
        import os
        def solve(a, b):
            if b == 0:
                os.abort()
            return a // b
        """,
        judged_by(
            TesterStyle.UNITTEST,
            """
            import unittest
            from solution import solve
            class TestSolve(unittest.TestCase):
                def test_division(self):
                    self.assertEqual(solve(4, 2), 2)
                    with self.assertRaises(Exception):
                        solve(1, 0)
            """,
        ),
        _ENDED,
    ),
    _program(
        "forged_exception",
        "claims builtin exceptions of names that end or skip tests",
        FORGING
        + code("""
        def solve(a, b):
            names = ("SystemExit", "KeyboardInterrupt", "SkipTest", "StopIteration", "GeneratorExit", "__import__")
            say({"id": request_id(), "raised": names[a % len(names)], "message": "0"})
            os.read(4, 1)
        """),
        UNITTEST,
        _ENDED,
    ),
)

PATCHED = (
    _program(
        "patched_unittest",
        "patches unittest in its own process",
        """
        import unittest, unittest.case, unittest.result
        unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a, **k: None
        unittest.TestCase.run = lambda self, result=None: result
        unittest.TestResult.wasSuccessful = lambda self: True
        unittest.TestResult.addFailure = unittest.TestResult.addError = lambda *a: None
        unittest.main = lambda *a, **k: None
        def solve(a, b):
            return 0
        """,
        UNITTEST,
    ),
    _program(
        "patched_pytest",
        "puts modules of its own in pytest's place",
        """
        import sys, types
        fake = types.ModuleType("pytest")
        fake.main = lambda *a, **k: 0
        for name in ("pytest", "_pytest", "_pytest.assertion", "_pytest.runner", "pluggy"):
            sys.modules[name] = fake
        def solve(a, b):
            return 0
        """,
        PYTEST,
    ),
    _program(
        "conftest",
        "writes a conftest.py and settings that drop every test or report it as passed",
        """
        hook = '''
        import pytest
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            outcome = yield
            outcome.get_result().outcome = "passed"
        def pytest_collection_modifyitems(items):
            items.clear()
        '''
        import os, textwrap
        for folder in (".", "..", "/", "/tmp"):
            for name, text in (
                ("conftest.py", textwrap.dedent(hook)),
                ("pytest.ini", "[pytest]\\naddopts = --co -q\\n"),
                ("sitecustomize.py", "import os; os._exit(0)"),
                ("solution.py", "solve = lambda a, b: a + b"),
                ("unittest.py", ""),
                ("test_solution.py", "def test_ok(): pass"),
            ):
                try:
                    with open(os.path.join(folder, name), "w") as f:
                        f.write(text)
                except OSError:
                    pass
        def solve(a, b):
            return 0
        """,
        PYTEST,
    ),
    _program(
        "patched_builtins",
        "patches builtins, assertions and imports",
        """
        import builtins
        class Silent(BaseException):
            pass
        builtins.AssertionError = Silent
        builtins.__import__ = lambda *a, **k: builtins
        builtins.isinstance = builtins.all = builtins.callable = lambda *a: True
        builtins.abs = lambda n: 0
        builtins.eval = builtins.exec = builtins.compile = lambda *a, **k: None
        def solve(a, b):
            return 0
        """,
        ASSERTS,
        _ENDED,
    ),
    _program(
        "forged_verdict_of_a_tester",
        "writes a tester's verdict to every descriptor",
        """
        import json, os
        verdict = json.dumps({"run": 2, "failed": 0, "skipped": 0, "collected": 2}).encode() + b"\\n"
        def solve(a, b):
            for number in (*range(4), *range(5, 128)):
                try:
                    os.write(number, verdict)
                except OSError:
                    pass
            return 0
        """,
        UNITTEST,
    ),
    _program(
        "forged_verdict_in_replies",
        "sends the tester's verdict and more through its channel",
        FORGING
        + code("""
        def solve(a, b):
            say({"run": 2, "failed": 0, "skipped": 0, "collected": 2}, {"id": request_id(), "value": 3})
            return 0
        """),
        ASSERTS,
    ),
    _program(
        "slow_with_a_stopped_clock",
        "stops its clock before it is slow, where the test measures time",
        """
        import time
        sleep = time.sleep
        time.time = time.perf_counter = time.monotonic = lambda: 0.0
        def solve(a, b):
            sleep(0.8)
            return a + b
        """,
        judged_by(
            TesterStyle.HUMANEVAL,
            """
            import time
            def check(candidate):
                began = time.perf_counter()
                assert candidate(1, 2) == 3
                assert time.perf_counter() - began < 0.5, "too slow"
            """,
            entry_point="solve",
        ),
    ),
)

PROGRAMS = (*ENDED, *PATCHED)
