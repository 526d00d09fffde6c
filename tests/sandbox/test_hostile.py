"""Every hostile program fails its task, leaves nothing behind, and harms no later job: at each level, as each user."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from funicular.rewards.sandbox.types import Level
from tests.sandbox import hostile
from tests.sandbox.bait import Bait
from tests.sandbox.driving import LevelUnavailable, Report, User, run_drivers, why_not
from tests.sandbox.programs import HostileProgram

pytestmark = pytest.mark.integration

PLACES = [pytest.param((level, user), id=f"{level}-{user}") for level in Level for user in User]
in_every_place = pytest.mark.parametrize("place", PLACES)
of_every_category = pytest.mark.parametrize("category", list(hostile.CATEGORIES))
SHARDS = 4
"""Drivers at once; most attacks wait for a limit of time, so more than there are cores."""
_GROWTH_MIB = 64.0
"""Of the process that owns the sandbox, over one suite; its outputs and reports are in there."""

Judged = list[tuple[HostileProgram, dict[str, Any]]]


@functools.cache
def _run(level: Level, user: User, bait: Bait) -> Report | Exception:
    """A report, or why there is none: a suite that cannot be run is not tried again for each test."""
    try:
        return run_drivers("hostile", level, user, shards=SHARDS, environment=bait.environment)
    except Exception as error:
        return error


@pytest.fixture
def report(place: tuple[Level, User], the_bait: Bait) -> Report:
    """Of the whole suite at one level, as one user; the first test that asks runs it."""
    level, user = place
    if reason := why_not(user):
        pytest.skip(reason)
    run = _run(level, user, the_bait)
    if isinstance(run, LevelUnavailable):
        pytest.skip(str(run))
    if isinstance(run, Exception):
        raise run
    return run


@pytest.fixture
def judged(report: Report, category: str, place: tuple[Level, User]) -> Judged:
    """The programs of a category, and what was recorded of each."""
    left_out = report.all("left_out")
    programs = [program for program in hostile.CATEGORIES[category] if place[0] in program.levels]
    programs = [program for program in programs if program.name not in left_out]
    if not programs:
        pytest.skip(f"nothing of {category!r} runs at {place[0]} here")
    return [(program, report.records[program.name]) for program in programs]


def test_the_suite_is_large_enough() -> None:
    names = {program.name for program in hostile.PROGRAMS}
    assert len(names) == len(hostile.PROGRAMS) >= 110


@in_every_place
@of_every_category
def test_hostile_programs_fail_as_expected(judged: Judged, place: tuple[Level, User]) -> None:
    wrong = [
        (program.name, record["outcome"], record["detail"], record["stderr"][-300:])
        for program, record in judged
        if record["passed"] or record["outcome"] not in program.outcomes
    ]
    assert wrong == []
    assert {record["level"] for _, record in judged} <= {place[0].value}


@in_every_place
@of_every_category
def test_the_next_job_on_the_slot_is_unharmed(judged: Judged) -> None:
    harmed = [
        (program.name, check["outcome"], check["detail"], check["stderr"][-300:])
        for program, record in judged
        for check in record["checks"]
        if not check["passed"]
    ]
    assert harmed == []


@in_every_place
@of_every_category
def test_no_process_of_a_job_is_left(judged: Judged) -> None:
    assert [program.name for program, record in judged if record["processes_left"]] == []


@in_every_place
@of_every_category
def test_what_programs_say_is_safe_to_show(judged: Judged) -> None:
    unsafe = []
    for program, record in judged:
        for key in ("stdout", "stderr", "detail"):
            allowed = "" if key == "detail" else "\n\t"
            odd = {letter for letter in record[key] if not letter.isprintable() and letter not in allowed}
            if odd:
                unsafe.append((program.name, key, odd))
    assert unsafe == []


@in_every_place
@of_every_category
def test_reading_the_canary_is_noticed(judged: Judged) -> None:
    assert [program.name for program, record in judged if record["canary_read"] != program.reads_canary] == []


@in_every_place
def test_nothing_is_left_when_the_sandbox_is_closed(report: Report, the_bait: Bait) -> None:
    assert report.all("survivors") == []
    assert report.all("left_files") == []
    assert the_bait.touched() == []


@in_every_place
def test_the_trusted_process_is_as_it_was(report: Report) -> None:
    for part in report.parts:
        before, after = part["before"], part["after"]
        for what in ("processes", "descriptors", "threads"):
            assert after[what] <= before[what], (what, before, after)
        assert after["zombies"] == 0, after
        assert after["rss_mib"] - before["rss_mib"] < _GROWTH_MIB, (before, after)
