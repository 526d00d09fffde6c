"""Judging programs of the suites, and writing down what came of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.sandbox import Sandbox
from funicular.rewards.sandbox.slot.native import tool
from funicular.rewards.sandbox.types import Judgement, Level, Program, TesterStyle, TesterTests
from tests.sandbox.programs import BenignProgram, HostileProgram, named

DEADLINE_S = 90.0
"""Of one judgement, its wait included; a judge that hangs becomes an infra_error then."""


def open_sandbox(level: Level, slots: int) -> Sandbox:
    """A sandbox at exactly this level."""
    return Sandbox(SandboxConfig(isolation=level.value, min_level=level.value, slots=slots))


def judge_program(sandbox: Sandbox, program: BenignProgram | HostileProgram) -> Judgement:
    """Judge it by its own tests, within its own limits."""
    judged = Program(source=named(program.source), language=program.language)
    return sandbox.judge(judged, program.tests, limits=program.limits, deadline_s=DEADLINE_S)


def judge_together(
    sandbox: Sandbox, programs: Sequence[BenignProgram | HostileProgram], at_once: int
) -> list[dict[str, Any]]:
    """Judge programs, `at_once` in the queue; records in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        judgements = list(pool.map(lambda program: judge_program(sandbox, program), programs))
    return [record(program.name, judgement) for program, judgement in zip(programs, judgements, strict=True)]


def record(name: str, judgement: Judgement) -> dict[str, Any]:
    """A judgement for a report in JSON."""
    return {
        "name": name,
        "outcome": judgement.outcome.value,
        "passed": judgement.passed,
        "tests_passed": judgement.tests_passed,
        "detail": judgement.detail,
        "stdout": judgement.stdout,
        "stderr": judgement.stderr,
        "denied": dict(judgement.signals.denied),
        "violations": judgement.signals.protocol_violations,
        "canary_read": judgement.signals.canary_read,
        "level": judgement.level.value if judgement.level else None,
        "slot": judgement.slot,
        "cpu_s": judgement.cpu_s,
        "wall_s": judgement.wall_s,
    }


def can_run(program: BenignProgram | HostileProgram) -> bool:
    """Whether the language and the module that a program, or its tests, need are there."""
    if program.language != "python":
        return tool(program.language) is not None
    if isinstance(program, BenignProgram):
        needs = program.needs
    else:
        needs = "pytest" if isinstance(program.tests, TesterTests) and program.tests.style is TesterStyle.PYTEST else ""
    return not needs or importlib.util.find_spec(needs) is not None
