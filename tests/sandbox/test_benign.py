"""Every benign program passes: at each level, as each user, and while other processes want the cores too."""

from __future__ import annotations

import os

import pytest

from funicular.rewards.sandbox.types import Level
from tests.sandbox import benign
from tests.sandbox.driving import Report, User, busy, run_or_skip

pytestmark = pytest.mark.integration

PLACES = [pytest.param(level, user, id=f"{level}-{user}") for level in Level for user in User]


def _complaints(report: Report) -> list[str]:
    return [
        f"{record['name']}: {record['outcome']}: {record['detail']} {record['stderr'][-300:]}"
        for record in report.records.values()
        if not record["passed"]
    ]


def test_the_suite_is_large_enough() -> None:
    names = {program.name for program in benign.PROGRAMS}
    assert len(names) == len(benign.PROGRAMS) >= 55


@pytest.mark.parametrize(("level", "user"), PLACES)
def test_benign_programs_pass(level: Level, user: User) -> None:
    report = run_or_skip("benign", level, user)
    assert _complaints(report) == []
    assert len(report.records) >= 50, report.all("left_out")
    assert report.all("survivors") == []
    assert report.all("left_files") == []


@pytest.mark.parametrize("level", list(Level))
def test_benign_programs_pass_when_three_times_as_many_processes_want_the_cores(level: Level) -> None:
    with busy(3 * (os.cpu_count() or 1)):
        report = run_or_skip("benign", level, User.OWN)
    assert _complaints(report) == []
