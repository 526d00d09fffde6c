"""Runs a suite in processes of its own and writes what it saw: `python -m tests.sandbox.drive SUITE --level L3 ...`.

The process that is started watches: it adopts orphans, so what outlives the sandbox is seen. Its child drives the
sandbox. The suites: `hostile` (each program, then checks on the same lane), `benign`, `soak`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.types import Level
from tests.sandbox import benign, hostile
from tests.sandbox.checks import checks_after, warm_up
from tests.sandbox.judging import DEADLINE_S, can_run, judge_program, judge_together, open_sandbox, record
from tests.sandbox.programs import RUN, RUN_VARIABLE
from tests.sandbox.soak import drive_soak
from tests.sandbox.surroundings import become_reaper, left_files, look, look_until, survivors

LONGEST_S = 840.0
"""A suite that takes longer is ended."""


def drive_hostile(level: Level, shard: int, shards: int, only: str) -> dict[str, Any]:
    """Every `shards`-th program, one lane; after each the lane's processes are counted and checks run on it."""
    reaper = os.getppid()
    programs = [program for program in hostile.PROGRAMS if level in program.levels and only in program.name]
    usable = [program for program in programs if can_run(program)]
    records = []
    with open_sandbox(level, slots=1) as sandbox:
        for check, tests in warm_up(level):
            judgement = sandbox.judge(check, tests)
            if not judgement.passed:
                raise SystemExit(f"a harmless job fails at the start: {judgement}")
        before = look(reaper)
        for program in usable[shard::shards]:
            began = time.monotonic()
            judgement = judge_program(sandbox, program)
            seen = look_until(reaper, lambda now: now.processes <= before.processes)
            seconds = time.monotonic() - began
            after = [
                sandbox.judge(check, tests, deadline_s=DEADLINE_S) for check, tests in checks_after(program, level)
            ]
            entry = record(program.name, judgement)
            entry["checks"] = [record(program.name, check) for check in after]
            entry["processes_left"] = max(0, seen.processes - before.processes)
            entry["seconds"] = seconds
            records.append(entry)
        for check, tests in warm_up(level):
            sandbox.judge(check, tests)
        calm = look_until(reaper, lambda now: now.holds_no_more_than(before))
    left_out = [program.name for program in programs if program not in usable]
    return {"records": records, "left_out": left_out, "before": before.as_dict(), "after": calm.as_dict()}


def drive_benign(level: Level, slots: int, only: str) -> dict[str, Any]:
    """Every program for which this machine has what it needs."""
    programs = [program for program in benign.PROGRAMS if level in program.levels and only in program.name]
    usable = [program for program in programs if can_run(program)]
    with open_sandbox(level, slots) as sandbox:
        records = judge_together(sandbox, usable, at_once=2 * slots)
    return {"records": records, "left_out": [program.name for program in programs if program not in usable]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=("hostile", "benign", "soak"))
    parser.add_argument("--level", type=Level, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the report is written, as JSON")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--only", default="", help="programs whose names hold this")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _drive(arguments: argparse.Namespace) -> dict[str, Any]:
    level = arguments.level
    if arguments.suite == "hostile":
        return drive_hostile(level, arguments.shard, arguments.shards, arguments.only)
    if arguments.suite == "benign":
        return drive_benign(level, arguments.slots, arguments.only)
    with open_sandbox(level, arguments.slots) as sandbox:
        return drive_soak(sandbox, level, arguments.jobs, os.getppid())


def _watch(arguments: argparse.Namespace) -> int:
    become_reaper()
    with tempfile.TemporaryDirectory(prefix="drive-") as folder:
        command = [sys.executable, "-m", "tests.sandbox.drive", *sys.argv[1:], "--inner"]
        environment = {**os.environ, "TMPDIR": folder, RUN_VARIABLE: RUN}
        try:
            status = subprocess.run(command, env=environment, timeout=LONGEST_S).returncode
        except subprocess.TimeoutExpired:
            status = 124
        end = time.monotonic() + 5.0
        while (left := survivors(os.getpid())) and time.monotonic() < end:
            time.sleep(0.05)
        report = json.loads(arguments.out.read_text()) if status == 0 else {"records": []}
        report |= {"status": status, "survivors": left, "left_files": left_files(Path(folder))}
    arguments.out.write_text(json.dumps(report))
    for line in left:
        os.kill(int(line.split()[0]), 9)
    return status


def main() -> int:
    """Watch, or drive."""
    arguments = _arguments()
    if not arguments.inner:
        return _watch(arguments)
    try:
        report = _drive(arguments)
    except IsolationUnavailable as error:
        if "Change: " not in str(error):  # nothing to change on this machine: a fault of ours
            raise
        report = {"unavailable": str(error), "records": [], "left_out": []}
    arguments.out.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
