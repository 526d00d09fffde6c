"""Many mixed jobs, a third of them hostile: `FUNICULAR_SOAK_JOBS` says how many (default 600)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from funicular.rewards.sandbox.types import Level
from tests.sandbox import benign, hostile
from tests.sandbox.bait import Bait
from tests.sandbox.driving import Report, User, run_or_skip

pytestmark = pytest.mark.integration

JOBS = int(os.environ.get("FUNICULAR_SOAK_JOBS", "600"))
LEVEL = Level(os.environ.get("FUNICULAR_SOAK_LEVEL", "L3"))
_GROWTH_MIB = 48.0
"""Of a process over the second half of the jobs, when everything that is kept for ever has been seen."""


@pytest.fixture(scope="module")
def report(the_bait: Bait) -> Iterator[Report]:
    """Of the soak, run once."""
    return run_or_skip("soak", LEVEL, User.OWN, "--jobs", str(JOBS), environment=the_bait.environment)


def test_no_two_programs_share_a_name() -> None:
    names = [program.name for program in (*benign.PROGRAMS, *hostile.PROGRAMS)]
    assert len(set(names)) == len(names)


def test_verdicts_are_those_of_each_program_alone(report: Report) -> None:
    """Where several outcomes are right, as when time and memory run out together, it may be another of these."""
    (part,) = report.parts
    assert len(part["records"]) == JOBS
    outcomes = {program.name: program.outcomes for program in hostile.PROGRAMS}
    others = []
    for record in part["records"]:
        alone = part["alone"][record["name"]]
        same = {alone["outcome"], *outcomes.get(record["name"], ())}
        if record["passed"] != alone["passed"] or record["outcome"] not in same:
            others.append((record["name"], record["outcome"], alone["outcome"], record["detail"]))
    assert others == []


def test_no_job_is_lost_to_an_error_of_ours(report: Report) -> None:
    (part,) = report.parts
    lost = [record for record in (*part["alone"].values(), *part["records"]) if record["outcome"] == "infra_error"]
    assert lost == []


def test_nothing_is_left(report: Report, the_bait: Bait) -> None:
    assert report.all("survivors") == []
    assert report.all("left_files") == []
    assert the_bait.touched() == []


def test_descriptors_threads_and_processes_do_not_grow(report: Report) -> None:
    (part,) = report.parts
    for what in ("processes", "descriptors", "threads", "zombies"):
        assert part["after"][what] <= part["before"][what], (what, part["before"], part["after"])


def test_memory_is_stable(report: Report) -> None:
    (part,) = report.parts
    half = part["sizes"][len(part["sizes"]) // 2 :]
    for what in ("rss_mib", "slots_rss_mib"):
        sizes = [size[what] for size in half]
        assert sizes[-1] - sizes[0] < _GROWTH_MIB, sizes
