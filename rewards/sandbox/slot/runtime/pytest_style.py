"""Run a test module with pytest, where the slot's interpreter has it, and count what it did."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from funicular.rewards.sandbox.slot.runtime.tally import Tally

_ARGUMENTS = (
    f"-c {os.devnull} --rootdir=. --confcutdir=. --noconftest --import-mode=importlib --assert=plain --tb=line -s -q "
    "-p no:cacheprovider -p no:faulthandler -p no:doctest -p no:junitxml"
).split()
"""Nothing outside the folder of the job is looked at, nothing but the one file is run."""


class PytestMissing(RuntimeError):
    """The node's environment has no pytest that works: nobody's program is to blame."""


def require_pytest() -> None:
    """Raises PytestMissing unless it can be imported here."""
    try:
        import pytest  # noqa: F401
    except ImportError as error:
        raise PytestMissing(
            f"pytest cannot be imported in this node's slots ({error}); install it, or turn the tests into unittest"
        ) from None


def run_pytest(module: ModuleType, source: bytes, tally: Tally) -> None:
    """Collect and run the tests of `module`, which has run already.

    pytest finds it in sys.modules instead of importing the file, which it needs only to start from.
    """
    import pytest

    path = Path.cwd() / f"{module.__name__}.py"
    path.write_bytes(source)
    module.__file__ = str(path)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status = pytest.main([path.name, *_ARGUMENTS], plugins=[_Counter(tally)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        tally.fail("pytest", f"it ended with {status!r}")


class _Counter:
    """A pytest plugin; pytest finds its methods by their names."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def pytest_collection_finish(self, session: Any) -> None:
        self._tally.collected = len(session.items)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._tally.fail(report.nodeid, _last_line(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        expected_to_fail = hasattr(report, "wasxfail")
        if report.when == "call":
            self._tally.run += 1
        if report.failed or (expected_to_fail and report.passed and report.when == "call"):
            self._tally.fail(report.nodeid, _last_line(report) or "succeeded unexpectedly")
        elif report.skipped and not expected_to_fail:
            self._tally.skipped += 1


def _last_line(report: Any) -> str:
    return str(report.longreprtext).strip().rsplit("\n", 1)[-1]
