"""The verdict on one submission: runs its tests in a lane's slots, and compares on this side.

Judged code only claims outputs. What is expected never enters a slot that runs it.
"""

from __future__ import annotations

import time
from typing import Protocol

from funicular.rewards.nearest import known_names
from funicular.rewards.sandbox.account import Account, cut, ending
from funicular.rewards.sandbox.calls import check_calls, judge_calls
from funicular.rewards.sandbox.compare import same_stdout
from funicular.rewards.sandbox.slot.native import compile_limits
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.split import judge_split, judge_together, longest_split_s
from funicular.rewards.sandbox.types import (
    CallTests,
    CaseResult,
    Integrity,
    JobReport,
    Judgement,
    Level,
    Limits,
    Outcome,
    Program,
    StdioTests,
    TesterTests,
    TestSet,
)

LANGUAGES = ("python", "bash", "cpp", "javascript")
COMPILED = frozenset({"cpp"})
MAX_SOURCE_BYTES = 1 << 20


class JudgeSlots(Protocol):
    """A lane's slots."""

    def get(self, role: SlotRole) -> SlotProcess:
        """The slot of that role, started if there is none."""
        ...


def check_judgeable(
    tests: TestSet, language: str = "python", *, allow_weak: bool = False, level: Level = Level.L3
) -> None:
    """Find out, before anything runs, whether such tests can be judged.

    Args:
        allow_weak: `sandbox.allow_weak_integrity`.
        level: that the slots reach.

    Raises:
        ValueError: says what cannot be, and what to change.
    """
    _check_kind(tests, language, allow_weak=allow_weak, level=level)
    if isinstance(tests, CallTests):
        check_calls(tests)


def judge(
    slots: JudgeSlots,
    program: Program,
    tests: TestSet,
    limits: Limits,
    *,
    all_tests: bool = False,
    allow_weak: bool = False,
    seconds: float | None = None,
) -> Judgement:
    """Judge one submission.

    Args:
        limits: of each of its jobs.
        all_tests: go on after a test that failed.
        seconds: after which no further job begins. A submission of which every test until then passed is
            `infra_error`: each job ends by its own limits, so it is not known to be too slow. A test that failed
            before decides.

    Raises:
        SlotLost, SlotFailed: a slot died, fell silent or does not start.
        ValueError: such tests cannot be judged (`check_judgeable`).
    """
    # Arguments of calls that cannot cross raise when it is their turn; NATIVE slots refuse to start below L3.
    _check_kind(tests, program.language, allow_weak=allow_weak, level=Level.L3)
    python = program.language == "python"
    # Slots start before a job's time runs.
    slot = slots.get(SlotRole.CANDIDATE if python else SlotRole.NATIVE)
    split = isinstance(tests, TesterTests) and not tests.same_process
    tester = slots.get(SlotRole.TESTER) if split else None
    source = program.source.encode("utf-8", "surrogatepass")
    account = Account(count_tests(tests), slot.level, slot.name)
    if isinstance(tests, TesterTests) and tests.same_process:
        account.integrity = Integrity.WEAK
    if len(source) > MAX_SOURCE_BYTES:
        account.run = 0
        account.fail(Outcome.COMPILE_ERROR, f"compile_error: {len(source)} bytes of source; at most {MAX_SOURCE_BYTES}")
    elif seconds is not None and seconds <= 0:
        account.run = 0
        account.fail(Outcome.INFRA_ERROR, "infra_error: no time was left to begin")
    elif isinstance(tests, StdioTests):
        until = None if seconds is None else time.monotonic() + seconds
        _judge_stdio(slot, program, source, tests, limits, account, all_tests=all_tests, until=until)
    elif isinstance(tests, CallTests):
        judge_calls(slot, source, tests, limits, account, all_tests=all_tests)
    elif tester is not None:
        judge_split(slot, tester, source, tests, limits, account)
    else:
        judge_together(slot, program.source, tests, limits, account)
    return account.judgement()


def run_program(slots: JudgeSlots, program: Program, stdin: bytes, limits: Limits) -> JobReport:
    """Run a program once; a compilation that fails is what is reported.

    Raises:
        SlotLost, SlotFailed: the slot died, fell silent or does not start.
        ValueError: an unknown language.
    """
    if program.language not in LANGUAGES:
        raise ValueError(f"language {program.language!r}: {known_names(program.language, LANGUAGES)}")
    slot = slots.get(SlotRole.CANDIDATE if program.language == "python" else SlotRole.NATIVE)
    source = program.source.encode("utf-8", "surrogatepass")
    if program.language in COMPILED:
        compiled = _compile(slot, source, program.language, limits)
        if compiled.outcome is not Outcome.OK:
            return compiled
    return slot.run(_job(program.language, source, stdin, limits))


def longest_s(limits: Limits) -> float:
    """Seconds of wall time after which what `judge` has begun ends by its own limits: a compilation with the run after
    it, or a candidate with its tests."""
    return max(compile_limits(limits).longest_wall_s + limits.longest_wall_s, longest_split_s(limits))


def count_tests(tests: TestSet) -> int:
    """How many there are, as far as one sees without running them: a test file counts as one."""
    if isinstance(tests, TesterTests):
        return max(len(tests.statements), 1)
    return len(tests.cases)


def _check_kind(tests: TestSet, language: str, *, allow_weak: bool, level: Level) -> None:
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: {known_names(language, LANGUAGES)}")
    if language != "python":
        if not isinstance(tests, StdioTests):
            raise ValueError(
                f"language {language}: only tests of standard input and output run it; these are "
                f"{type(tests).__name__}, which call functions of a Python program"
            )
        if level is not Level.L3:
            raise ValueError(
                f"language {language}: needs level L3, this sandbox has {level}: `funicular sandbox probe`"
            )
    if not (tests.statements or tests.source.strip() if isinstance(tests, TesterTests) else tests.cases):
        raise ValueError("a task without tests: nothing could fail")
    if isinstance(tests, TesterTests) and tests.same_process and not allow_weak:
        raise ValueError(
            "tests with same_process=True share a process with the judged code, which can then write its own verdict; "
            "set sandbox.allow_weak_integrity=true to accept that, or leave same_process out"
        )


def _judge_stdio(
    slot: SlotProcess,
    program: Program,
    source: bytes,
    tests: StdioTests,
    limits: Limits,
    account: Account,
    *,
    all_tests: bool,
    until: float | None,
) -> None:
    if program.language in COMPILED:
        compiled = _compile(slot, source, program.language, limits)
        account.add_job(compiled, slot.canary)
        if compiled.outcome is not Outcome.OK:
            account.run = 0
            account.fail(compiled.outcome, ending(compiled))
            return
    results: dict[int, CaseResult] = {}
    order = range(len(tests.cases))
    # Where the first failure ends it, it had better come from a short test.
    for index in order if all_tests else sorted(order, key=lambda number: len(tests.cases[number].stdin)):
        if until is not None and time.monotonic() > until:
            late = f"infra_error: the deadline passed after {len(results)} of {account.total} tests"
            account.fail(Outcome.INFRA_ERROR, late)  # unless a test failed before
            break
        case = tests.cases[index]
        report = slot.run(_job(program.language, source, case.stdin.encode("utf-8", "surrogatepass"), limits))
        account.add_job(report, slot.canary)
        outcome, detail = report.outcome, ending(report)
        if outcome is Outcome.OK and not same_stdout(report.stdout, case.stdout, tests.comparison):
            outcome, detail = Outcome.WRONG, _difference(report.stdout, case.stdout)
        results[index] = CaseResult(outcome=outcome, cpu_s=report.cpu_s, wall_s=report.wall_s)
        if outcome is not Outcome.OK:
            account.fail(outcome, f"test {index + 1} of {account.total}: {detail}")
        if outcome is Outcome.INFRA_ERROR or not (all_tests or outcome is Outcome.OK):
            break
        if account.wall_s > limits.submission_s and len(results) < account.total:
            # Otherwise a program that dawdles in each test could wait for the deadline, and be void instead of wrong.
            account.fail(Outcome.WALL, f"{len(results)} of {account.total} tests took {account.wall_s:.0f} s")
            break
    account.cases = [results[index] for index in sorted(results)]
    account.passed = sum(result.outcome is Outcome.OK for result in account.cases)


def _compile(slot: SlotProcess, source: bytes, language: str, limits: Limits) -> JobReport:
    job = Job(kind=JobKind.COMPILE, source=source, limits=compile_limits(limits), options={"language": language})
    return slot.run(job)


def _job(language: str, source: bytes, stdin: bytes, limits: Limits) -> Job:
    if language == "python":
        return Job(kind=JobKind.PROGRAM, source=source, stdin=stdin, limits=limits)
    return Job(kind=JobKind.EXEC, source=source, stdin=stdin, limits=limits, options={"language": language})


def _difference(claimed: bytes, expected: str) -> str:
    """For people: the first line that differs."""
    mine = claimed.decode("utf-8", "backslashreplace").rstrip().split("\n")
    theirs = expected.replace("\r\n", "\n").rstrip().split("\n")
    for number, (line, other) in enumerate(zip(mine, theirs, strict=False), start=1):
        if line.split() != other.split():
            where = f"line {number}: " if len(theirs) > 1 or len(mine) > 1 else ""
            return f"{where}expected {cut(repr(other))}, got {cut(repr(line))}"
    return f"expected {len(theirs)} lines, got {len(mine)}"
