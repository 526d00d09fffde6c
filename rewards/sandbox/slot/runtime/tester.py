"""Trusted test code, run against a candidate at the other end of the call channel.

Options of a job:
    style           a `TesterStyle`
    entry_point     the candidate's function that the tests are about, where it is known
    statements      of style asserts
    prelude         trusted source that runs before the tests, such as a HumanEval prompt with its helpers
    module_names    names under which tests import the candidate, besides `solution`
    candidate       its source: run it in this very process (`in_process.py`); there is no channel then
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import unittest
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from funicular.rewards.sandbox.slot.runtime import program
from funicular.rewards.sandbox.slot.runtime.channel import Channel
from funicular.rewards.sandbox.slot.runtime.free_names import free_names
from funicular.rewards.sandbox.slot.runtime.in_process import InProcessCandidate
from funicular.rewards.sandbox.slot.runtime.lending import HELPERS, IMPORTED, may_lend
from funicular.rewards.sandbox.slot.runtime.proxies import Candidate
from funicular.rewards.sandbox.slot.runtime.pytest_style import PytestMissing, require_pytest, run_pytest
from funicular.rewards.sandbox.slot.runtime.tally import Tally
from funicular.rewards.sandbox.slot.wire import CALLS_FD, RESULT_FD
from funicular.rewards.sandbox.types import TesterStyle

MODULE_NAME = "test_main"
"""Not `__main__`, so that `unittest.main()` under the usual guard does not run."""


def run_tester(source: bytes, options: dict[str, Any]) -> NoReturn:
    """Run the tests and write one verdict line on RESULT_FD."""

    def run() -> int:
        program.prepare()
        in_process = "candidate" in options
        candidate = InProcessCandidate(options["candidate"]) if in_process else Candidate(Channel(CALLS_FD))
        tally = _run_tests(source, options, candidate)
        verdict = {**tally.verdict(), "violations": candidate.violations}
        os.write(RESULT_FD, json.dumps(verdict).encode() + b"\n")
        program.flush_streams()
        return 0

    program.end_with(run)


def _run_tests(source: bytes, options: dict[str, Any], candidate: Candidate | InProcessCandidate) -> Tally:
    tally = Tally()
    try:
        candidate.wait_until_ready()
        module = _test_module(source, options, candidate)
        _STYLES[TesterStyle(options["style"])](source, module, options, tally)
    except PytestMissing:
        raise  # without a verdict the judge takes the tests for broken, not the program
    except BaseException as error:  # SystemExit of a test file included: whatever it was, nothing passed
        tally.collected = max(tally.collected, 1)
        tally.fail("set-up", error)
    # Tests that expect any exception must not take a broken candidate for one that raised it.
    if candidate.failure and not tally.failed:
        tally.fail("candidate", candidate.failure)
    if isinstance(candidate, Candidate) and not candidate.used and not tally.failed:
        tally.fail("candidate", "the tests never called it")
    return tally


def _test_module(source: bytes, options: dict[str, Any], candidate: Candidate | InProcessCandidate) -> ModuleType:
    """The module in which the tests run, with what they take from the candidate and from the prelude."""
    entry_point = options.get("entry_point")
    prelude = options.get("prelude", "")
    taken = free_names([source.decode("utf-8", "replace"), prelude, *options.get("statements", ())])
    lent = candidate.names
    if entry_point is not None:
        lent[entry_point] = candidate.function(entry_point)
    style = TesterStyle(options["style"])
    exported = {name for name in taken & set(lent) if may_lend(name, taken, style, entry_point)}
    for name in ("solution", *options.get("module_names", ())):
        sys.modules[name] = candidate.module(name, exported)
    module = program.fresh_module(MODULE_NAME, source)
    names = module.__dict__
    names.update((name, importlib.import_module(name)) for name in taken & IMPORTED - exported)
    names.update((name, HELPERS[name]) for name in taken & HELPERS.keys() - exported)
    names.update((name, lent[name]) for name in exported)
    if prelude:
        exec(compile(prelude, "prelude.py", "exec", dont_inherit=True), names)
    if entry_point is not None:  # the prelude may hold a stub of it
        names[entry_point] = lent[entry_point]
    return module


def _run_source(source: bytes, module: ModuleType) -> None:
    exec(compile(source, program.FILE_NAME, "exec", dont_inherit=True), module.__dict__)


def _run_humaneval(source: bytes, module: ModuleType, options: dict[str, Any], tally: Tally) -> None:
    tally.collected = 1
    candidate = module.__dict__[options["entry_point"]]
    _run_source(source, module)
    tally.run = 1
    try:
        module.__dict__["check"](candidate)
    except BaseException as error:  # SystemExit too: a check that ends early has checked nothing
        tally.fail("check", error)


def _run_asserts(source: bytes, module: ModuleType, options: dict[str, Any], tally: Tally) -> None:
    statements = options["statements"]
    tally.collected = len(statements)
    _run_source(source, module)
    for statement in statements:
        tally.run += 1
        try:
            exec(compile(statement, "assert.py", "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            tally.fail(statement, error)


def _run_unittest(source: bytes, module: ModuleType, options: dict[str, Any], tally: Tally) -> None:
    _run_source(source, module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    tally.collected = suite.countTestCases()
    result = unittest.TestResult()
    suite.run(result)
    tally.run = result.testsRun
    tally.skipped = len(result.skipped)
    for test, text in [*result.failures, *result.errors]:
        tally.fail(str(test), text.strip().rsplit("\n", 1)[-1])
    for test in result.unexpectedSuccesses:
        tally.fail(str(test), "succeeded unexpectedly")


def _run_pytest(source: bytes, module: ModuleType, options: dict[str, Any], tally: Tally) -> None:
    require_pytest()
    _run_source(source, module)
    run_pytest(module, source, tally)


_STYLES: dict[TesterStyle, Callable[[bytes, ModuleType, dict[str, Any], Tally], None]] = {
    TesterStyle.HUMANEVAL: _run_humaneval,
    TesterStyle.ASSERTS: _run_asserts,
    TesterStyle.UNITTEST: _run_unittest,
    TesterStyle.PYTEST: _run_pytest,
}
