"""`funicular sandbox probe`: the isolation level that this machine reaches, why no higher, and how fast it judges."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from funicular.rewards.sandbox.cores import usable_cores
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.probe import reach
from funicular.rewards.sandbox.sandbox import Sandbox
from funicular.rewards.sandbox.slot_process import missing_tool
from funicular.rewards.sandbox.types import (
    Level,
    Program,
    StdioCase,
    StdioTests,
    TesterStyle,
    TesterTests,
    TestSet,
)

REACHED, NOTHING_REACHED = 0, 1
_MEASURED_S = 1.0
_DOUBLES = StdioTests(cases=(StdioCase(stdin="4\n", stdout="8\n"),))
_ASSERTS = TesterTests(style=TesterStyle.ASSERTS, source="", statements=("assert double(4) == 8",))
_TRIALS: Mapping[str, tuple[Program, TestSet]] = {
    "python": (Program(source="print(2 * int(input()))"), _DOUBLES),
    "python, asserts in a slot of their own": (Program(source="def double(x):\n    return 2 * x"), _ASSERTS),
    "bash": (Program(source="read x; echo $((2 * x))", language="bash"), _DOUBLES),
    "c++": (
        Program(source="#include <iostream>\nint main() { int x; std::cin >> x; std::cout << 2 * x; }", language="cpp"),
        _DOUBLES,
    ),
    "javascript": (
        Program(source="console.log(2 * Number(require('fs').readFileSync(0, 'utf8')))", language="javascript"),
        _DOUBLES,
    ),
}


def print_probe() -> int:
    """Print what was found; the exit status: 0 if untrusted code can be contained here, else 1."""
    found = reach()
    print(f"level {found.level or 'none: code that a policy wrote cannot run here'}")
    for level, reason in found.reasons.items():
        print(f"  not {level}: {reason}")
    print("found")
    details = {**found.details, "cores": str(usable_cores())}
    width = max(map(len, details))
    for name, value in details.items():
        print(f"  {name:<{width}}  {value}")
    if found.level is None:
        return NOTHING_REACHED
    try:
        with Sandbox() as sandbox:
            print(f"self-test passed at {sandbox.level}{_but(sandbox.why_not_higher)}")
            for line in _trials(sandbox):
                print(f"  {line}")
            print(f"speed {_speed(sandbox)}")
    except IsolationUnavailable as error:
        print(f"self-test failed\n{error}")
        return NOTHING_REACHED
    return REACHED


def _but(why: str) -> str:
    return f" ({why})" if why else ""


def _trials(sandbox: Sandbox) -> Iterator[str]:
    for name, (program, tests) in _TRIALS.items():
        if program.language != "python" and sandbox.level is not Level.L3:
            yield f"{name}: needs L3"
            continue
        if missing := missing_tool(program.language):
            yield f"{name}: {missing}"
            continue
        judgement = sandbox.judge(program, tests)
        reason = f": {judgement.detail or judgement.stderr}".splitlines()[0] if not judgement.passed else ""
        yield f"{name}: {judgement.outcome}{reason}"


def _speed(sandbox: Sandbox) -> str:
    program, tests = _TRIALS["python"]
    slots = sandbox.stats().slots
    judged, began = 0, time.monotonic()
    while time.monotonic() - began < _MEASURED_S:
        judged += len(sandbox.judge_many([program] * slots, tests))
    seconds = time.monotonic() - began
    return f"{judged / seconds:.0f} jobs/s: programs of one line with one test, {slots} slots, {seconds:.1f} s"
