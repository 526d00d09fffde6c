from __future__ import annotations

from typing import Any

import pytest

from tests.mutations.test_mutations import TABLE


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print each mistake and what noticed it."""
    rows = config.stash.get(TABLE, [])
    if not rows:
        return
    terminalreporter.section("mistakes and the tests that notice them")
    shown = ""
    for name, check, failure in rows:
        terminalreporter.write_line(f"{'' if name == shown else name:<55} {check} ({failure})")
        shown = name
