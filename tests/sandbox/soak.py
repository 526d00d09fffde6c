"""Many mixed jobs through one sandbox: the verdicts must be those of each program alone, and nothing may pile up."""

from __future__ import annotations

import random
from typing import Any

from funicular.rewards.sandbox.sandbox import Sandbox
from funicular.rewards.sandbox.types import Level
from tests.sandbox import benign, hostile
from tests.sandbox.judging import can_run, judge_together
from tests.sandbox.programs import HostileProgram
from tests.sandbox.surroundings import look, look_until

SEED = 7
QUICK_S = 0.4
"""Attacks that take longer alone are left to the other suite, but for one in ten."""
AT_ONCE = 8
PARTS = 10
"""The surroundings are looked at after each."""


def drive_soak(sandbox: Sandbox, level: Level, jobs: int, reaper: int) -> dict[str, Any]:
    """Each program alone; then `jobs` drawn at random, a third of them hostile, with a queue that is never empty."""
    harmless = [program for program in benign.PROGRAMS if level in program.levels and can_run(program)]
    attacks = [program for program in hostile.PROGRAMS if level in program.levels and can_run(program)]
    alone = {}
    drawable: list[HostileProgram] = []
    for program in harmless:
        alone[program.name] = judge_together(sandbox, [program], 1)[0]
    for index, attack in enumerate(attacks):
        alone[attack.name] = judge_together(sandbox, [attack], 1)[0]
        if alone[attack.name]["wall_s"] < QUICK_S or index % 10 == 0:
            drawable.append(attack)
    before = look(reaper)
    draw = random.Random(SEED)
    drawn = [draw.choice(drawable) if index % 3 == 0 else draw.choice(harmless) for index in range(jobs)]
    draw.shuffle(drawn)
    records, sizes = [], []
    part = -(-jobs // PARTS)
    for start in range(0, jobs, part):
        records += judge_together(sandbox, drawn[start : start + part], AT_ONCE)
        sizes.append(look(reaper).as_dict())
    after = look_until(reaper, lambda now: now.holds_no_more_than(before))
    return {
        "alone": alone,
        "records": records,
        "before": before.as_dict(),
        "after": after.as_dict(),
        "sizes": sizes,
    }
