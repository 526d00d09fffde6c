"""Where a node has no pytest."""

import sys

import pytest

from funicular.rewards.sandbox.slot.runtime import tester
from funicular.rewards.sandbox.slot.runtime.pytest_style import PytestMissing


def test_without_pytest_there_is_no_verdict_so_that_no_program_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    options = {"style": "pytest", "candidate": "def f(x): return x"}
    with pytest.raises(PytestMissing, match="turn the tests into unittest"):
        tester._run_tests(b"import pytest", options, tester.InProcessCandidate("def f(x): return x"))
