"""Test code and judged code in two slots, and a relay between them here.

The tester's process asks, the candidate's answers, and lines cross in strict alternation. The verdict is the
tester's; a candidate that ended badly fails for its own reason.

When the tester's own job ends badly, the candidate is to blame if anything that it said had reached the tester:
the replies are what differs between submissions, and a task whose tests are too slow for any candidate does not
pass the check that its reference answer does. Tests that give no verdict before that, or that let a candidate wait
for its first call until its wall time is over, are `infra_error`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any

from funicular.rewards.sandbox.account import Account, ending
from funicular.rewards.sandbox.call_channel import (
    GRACE_S,
    MAX_READY_BYTES,
    CallChannel,
    ChannelClosed,
    ChannelError,
    ChannelJob,
    ChannelTimeout,
    ProtocolViolation,
    TooMuchSaid,
    check_ready,
    why_it_ended,
)
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotProcess
from funicular.rewards.sandbox.types import (
    JobReport,
    Limits,
    Outcome,
    TesterTests,
)

_MAX_VERDICT_BYTES = 64 << 10
_MAX_TESTER_BYTES = 1 << 30
_WAITING_S = 2.0
"""Wall time that the tests may take from a candidate's."""
_TESTER_CPU_FACTOR, _TESTER_CPU_S, _TESTER_MEMORY_MIB = 2.0, 3.0, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a tester counted."""

    run: int
    failed: int
    skipped: int
    collected: int
    first_failure: str
    violations: int

    @property
    def passed(self) -> bool:
        """Every test that is there was run, and none failed."""
        return self.run == self.collected > 0 and self.failed == self.skipped == self.violations == 0


@dataclass(slots=True)
class Relayed:
    """What happened between the two."""

    replies: int = 0
    """That reached the tester."""
    stopped: ChannelError | None = None
    """Why the candidate could not go on."""
    broken_tests: str = ""
    tests_s: float | None = 0.0
    """Seconds that the tests took before their first call; None: the candidate was called."""


def tester_limits(limits: Limits) -> Limits:
    """Of the tester's job: more than the candidate's, so that the candidate's limits are those that count."""
    return replace(
        limits,
        cpu_s=_TESTER_CPU_FACTOR * limits.cpu_s + _TESTER_CPU_S,
        memory_mib=max(limits.memory_mib, _TESTER_MEMORY_MIB),
    )


def longest_split_s(limits: Limits) -> float:
    """Seconds after which both jobs have ended: the tests may begin just before the candidate's time is over."""
    return _candidate_limits(limits).longest_wall_s + tester_limits(limits).longest_wall_s


def judge_split(
    candidate: SlotProcess, tester: SlotProcess, source: bytes, tests: TesterTests, limits: Limits, account: Account
) -> None:
    """Run the program in one slot and its tests in the other.

    Raises:
        SlotLost: one of the slots died or fell silent.
    """
    serve = Job(kind=JobKind.SERVE, source=source, limits=_candidate_limits(limits))
    seconds = serve.limits.longest_wall_s + GRACE_S
    test = Job(
        kind=JobKind.TESTER,
        source=tests.source.encode("utf-8", "surrogatepass"),
        limits=tester_limits(limits),
        options=tester_options(tests),
    )
    relayed = Relayed()
    tester_report: JobReport | None = None
    with ChannelJob(candidate, serve, seconds) as serving:
        try:
            ready = serving.channel.receive(MAX_READY_BYTES)
            check_ready(ready)
        except ChannelError as error:
            relayed.stopped = error
        else:
            # Started only now: a program that does not even load costs no tester.
            with ChannelJob(tester, test, seconds, _MAX_TESTER_BYTES) as testing:
                _relay(serving.channel, testing.channel, ready, relayed)
                tester_report = testing.finish()
        report = serving.finish()
    account.add_job(report, candidate.canary)
    account.violations += isinstance(relayed.stopped, ProtocolViolation)
    _settle(account, report, tester_report, relayed)


def judge_together(slot: SlotProcess, source: str, tests: TesterTests, limits: Limits, account: Account) -> None:
    """Run tests and program in one process, where the program can forge its verdict.

    Raises:
        SlotLost: the slot died or fell silent.
    """
    options = tester_options(tests) | {"candidate": source}
    test = Job(
        kind=JobKind.TESTER,
        source=tests.source.encode("utf-8", "surrogatepass"),
        limits=limits,
        options=options,
    )
    report = slot.run(test)
    account.add_job(report, slot.canary)
    if report.outcome is not Outcome.OK:
        _end(account, report.outcome, ending(report))
        return
    verdict = read_verdict(report.result)
    if verdict is None:
        _end(account, Outcome.RUNTIME_ERROR, "runtime_error: it ended before its tests did")
    else:
        _count(account, verdict)


def tester_options(tests: TesterTests) -> dict[str, Any]:
    """For `run_tester`, in the slot."""
    return {
        "style": tests.style.value,
        "entry_point": tests.entry_point,
        "statements": list(tests.statements),
        "prelude": tests.prelude,
    }


def read_verdict(written: bytes) -> Verdict | None:
    """The tester's one line; None if it is not there, or not as it should be."""
    if len(written) > _MAX_VERDICT_BYTES or written.count(b"\n") != 1 or not written.endswith(b"\n"):
        return None
    try:
        said = json.loads(written)
        counts = {name: said[name] for name in ("run", "failed", "skipped", "collected")}
        violations = said.get("violations", 0)
        first_failure = str(said.get("first_failure", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if any(type(count) is not int or count < 0 for count in (*counts.values(), violations)):
        return None
    return Verdict(**counts, violations=violations, first_failure=first_failure)


def _candidate_limits(limits: Limits) -> Limits:
    return replace(limits, waiting_s=_WAITING_S)


def _relay(candidate: CallChannel, tester: CallChannel, ready: bytes, relayed: Relayed) -> None:
    """Pass lines, one request and one reply at a time, until the tester ends or the candidate cannot go on."""
    began = time.monotonic()
    try:
        tester.send(ready)
        while True:
            request = tester.receive()
            try:
                candidate.expect_silence()
                relayed.tests_s = None
                reply = candidate.ask(request)
            except ChannelError as error:
                relayed.stopped = error
                return
            tester.send(reply)
            relayed.replies += 1
    except ChannelClosed:
        return  # the tester has ended: its report says how
    except ChannelTimeout as error:
        relayed.stopped = error  # the candidate's wall time is over, whoever used it
    except ChannelError as error:
        relayed.broken_tests = f"the tests ask too much of a channel: {error}"
    finally:
        if relayed.tests_s is not None:
            relayed.tests_s = time.monotonic() - began


def _settle(account: Account, report: JobReport, tester: JobReport | None, relayed: Relayed) -> None:
    verdict = read_verdict(tester.result) if tester is not None else None
    if tester is not None and (blame := _blame_of_tests(report, tester, verdict, relayed)):
        _end(account, Outcome.INFRA_ERROR, blame)
        return
    found = why_it_ended(relayed.stopped, report)
    if found is None:
        found = _why_no_verdict(verdict, tester, relayed)
    if verdict is not None:
        _count(account, verdict, found)
    elif found is not None:
        _end(account, *found)


def _blame_of_tests(report: JobReport, tester: JobReport, verdict: Verdict | None, relayed: Relayed) -> str:
    """Why the tests are to blame, where the candidate was never called and did nothing worse than wait; else empty."""
    timed_out = report.outcome is Outcome.WALL or isinstance(relayed.stopped, ChannelTimeout)
    if relayed.tests_s is None or not (timed_out or (report.outcome is Outcome.OK and relayed.stopped is None)):
        return ""
    if isinstance(relayed.stopped, ProtocolViolation | TooMuchSaid):
        return ""
    if relayed.broken_tests:
        return relayed.broken_tests
    if verdict is None and tester.outcome is not Outcome.OK:
        return f"the tests themselves failed: {ending(tester)}"
    # within the time that is theirs, the candidate's own source used its wall time up
    if timed_out and relayed.tests_s > _WAITING_S:
        return f"the tests took {relayed.tests_s:.1f} s before they called the candidate"
    return ""


def _why_no_verdict(verdict: Verdict | None, tester: JobReport | None, relayed: Relayed) -> tuple[Outcome, str] | None:
    """Outcome and reason where the candidate's job ended well, but the tester's did not."""
    if relayed.broken_tests and not relayed.replies:
        return Outcome.INFRA_ERROR, relayed.broken_tests
    if tester is None or tester.outcome is Outcome.OK:
        return None if verdict is not None else (Outcome.INFRA_ERROR, "the tests gave no verdict")
    if relayed.replies:
        reason = relayed.broken_tests or ending(tester)
        return tester.outcome, f"in its tests: {reason}"
    return Outcome.INFRA_ERROR, f"the tests themselves failed: {ending(tester)}"


def _end(account: Account, outcome: Outcome, detail: str) -> None:
    account.run = 0
    account.fail(outcome, detail)


def _count(account: Account, verdict: Verdict, found: tuple[Outcome, str] | None = None) -> None:
    """Take the counts over; `found` says why it failed where the tester cannot know."""
    account.total = max(verdict.collected, account.total)
    account.run = min(verdict.run, account.total)
    account.passed = max(account.run - verdict.failed - verdict.skipped, 0)
    if found is not None:
        account.passed = min(account.passed, account.total - 1)
        account.fail(*found)
    elif verdict.violations:
        account.violations += verdict.violations
        account.fail(Outcome.PROTOCOL, f"protocol: {verdict.first_failure}")
    elif not verdict.passed:
        account.fail(Outcome.WRONG, _counts(verdict))


def _counts(verdict: Verdict) -> str:
    said = f"of {verdict.collected} tests {verdict.failed} failed"
    if verdict.skipped:
        said += f", {verdict.skipped} were skipped"
    if verdict.run != verdict.collected:
        said += f", only {verdict.run} were run"
    return f"{said}: {verdict.first_failure}" if verdict.first_failure else said
