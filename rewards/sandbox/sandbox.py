"""The sandbox's entry point: judges programs that a policy wrote, in slots that contain them.

    sandbox = Sandbox()                                   # refuses where untrusted code cannot be contained
    judgement = sandbox.judge(Program(source=text), tests)

A submission waits in a fair queue, then one lane judges it, all its tests in a row.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Self

from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.cores import usable_cores
from funicular.rewards.sandbox.isolation import SlotStarter, below, levels_to_try, refusal, why
from funicular.rewards.sandbox.judge import check_judgeable, count_tests, judge, longest_s, run_program
from funicular.rewards.sandbox.lane import Lane
from funicular.rewards.sandbox.lane_slots import LaneSlots
from funicular.rewards.sandbox.queue import FairQueue, SandboxBusy, Submission
from funicular.rewards.sandbox.slot_process import missing_tool
from funicular.rewards.sandbox.stats import Recorder, SandboxStats
from funicular.rewards.sandbox.types import (
    JobReport,
    Judgement,
    Level,
    Limits,
    Outcome,
    Program,
    StdioCase,
    StdioTests,
    TestSet,
)

log = logging.getLogger(__name__)

QUEUE_PER_SLOT = 64
"""Submissions that may wait for each slot, unless `sandbox.queue` says otherwise."""
START_S = 90.0
"""Seconds for the first slots of all lanes to start and pass the self-test."""
STOP_S = 15.0
_GRACE_S = 30.0
_DEFAULTS = SandboxConfig()
_ANY_INPUT = StdioTests(cases=(StdioCase(stdin="", stdout=""),))


class Sandbox:
    """Slots of this machine as one service; every method may be called from any thread.

    Args:
        config: section `sandbox` of a recipe.
        python: the interpreter of judged Python; its site-packages are visible to judged code.

    Raises:
        IsolationUnavailable: this machine does not reach the level that `config` requires; says why not and what to
            change.
    """

    level: Level
    """Reached by every slot."""
    why_not_higher: str
    """Empty at L3."""

    def __init__(self, config: SandboxConfig = _DEFAULTS, *, python: str = sys.executable) -> None:
        self.config = config
        count = config.slots or usable_cores()
        self._recorder = Recorder(count)
        self._queue = self._new_queue(count)
        self.level, self.why_not_higher, first = self._reach(python, count)
        start = SlotStarter(self.level, python)
        self._lanes = [first, *(self._lane(number, start) for number in range(1, count))]
        for lane in self._lanes[1:]:
            lane.start()
        deadline = time.monotonic() + START_S
        for lane in self._lanes[1:]:
            if not lane.wait_first_try(max(0.0, deadline - time.monotonic())):
                log.warning("lane %d has no slot after %.0f s; it goes on trying", lane.number, START_S)

    def run(self, program: Program, stdin: bytes = b"", *, limits: Limits | None = None) -> JobReport:
        """Run a program once, without tests; what it wrote is in the report.

        Raises:
            ValueError: its language is unknown, or needs a higher level or a tool that this node has not.
            RuntimeError: the sandbox is closed.
        """
        self._check(_ANY_INPUT, program.language)
        bounds = limits or self.config.limits
        submission = Submission(
            work=lambda slots, seconds: run_program(slots, program, stdin, bounds),
            infra_error=_no_report,
            run="",
            deadline=time.monotonic() + self.config.deadline_s,
        )
        self._submit(submission)
        return self._result(submission)

    def judge(
        self,
        program: Program,
        tests: TestSet,
        *,
        limits: Limits | None = None,
        all_tests: bool | None = None,
        run: str = "",
        deadline_s: float | None = None,
    ) -> Judgement:
        """The verdict on one program. See `judge_many`."""
        return self.judge_many([program], tests, limits=limits, all_tests=all_tests, run=run, deadline_s=deadline_s)[0]

    def judge_many(
        self,
        programs: Sequence[Program],
        tests: TestSet,
        *,
        limits: Limits | None = None,
        all_tests: bool | None = None,
        run: str = "",
        deadline_s: float | None = None,
    ) -> list[Judgement]:
        """The verdict on each program, in order; waits while the queue is full.

        Args:
            limits: of one job; None: the config's.
            all_tests: run all tests instead of stopping at the first that fails; None: as the config says.
            run: name of the run that asks; runs share the slots fairly.
            deadline_s: seconds within which all must be judged, the queue included; None: the config's. What is
                not judged by then is `Outcome.INFRA_ERROR`.

        Raises:
            ValueError: such tests cannot be judged, or not in this language, at this level or without a tool that
                this node has not; says what to change.
            RuntimeError: the sandbox is closed.
        """
        submissions = self._submissions(programs, tests, limits, all_tests, run, deadline_s)
        for submission in submissions:
            self._submit(submission)
        return self.collect(submissions)

    def offer(
        self,
        programs: Sequence[Program],
        tests: TestSet,
        *,
        limits: Limits | None = None,
        all_tests: bool | None = None,
        run: str = "",
        deadline_s: float | None = None,
    ) -> list[Submission]:
        """As `judge_many`, without waiting: `collect` waits for the verdicts, `withdraw` gives them up.

        Raises:
            ValueError: as `judge_many`.
            SandboxBusy: the queue is full; says when to ask again. Nothing was submitted.
            RuntimeError: the sandbox is closed.
        """
        submissions = self._submissions(programs, tests, limits, all_tests, run, deadline_s)
        if not self._queue.put(submissions):
            self._recorder.count("refused")
            waiting = self._queue.waiting
            rate = self._recorder.rate()
            seconds = len(programs) / rate if rate else 1.0
            raise SandboxBusy(waiting, min(max(seconds, 0.05), 10.0))
        return submissions

    def collect(self, submissions: Sequence[Submission]) -> list[Judgement]:
        """Wait for verdicts; never beyond the submissions' deadlines and the time that the jobs under way may take."""
        return [replace(self._result(submission), queue_s=submission.waited_s) for submission in submissions]

    @staticmethod
    def withdraw(submissions: Sequence[Submission]) -> None:
        """Nobody waits for these any more: what has not begun is dropped."""
        for submission in submissions:
            submission.result.cancel()

    def stats(self, *, new_window: bool = True) -> SandboxStats:
        """What it did so far; begins a new window for the longest waits, unless told not to."""
        return self._recorder.read(level=self.level, waiting=self._queue.waiting, new_window=new_window)

    def close(self) -> None:
        """End every slot and what runs in it. What waits is `Outcome.INFRA_ERROR`."""
        self._queue.close()
        for lane in self._lanes:
            lane.stop()
        deadline = time.monotonic() + STOP_S
        for lane in self._lanes:
            if not lane.join(max(0.0, deadline - time.monotonic())):
                log.error("lane %d did not end within %.0f s", lane.number, STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _new_queue(self, lanes: int) -> FairQueue:
        capacity = self.config.queue or QUEUE_PER_SLOT * lanes
        return FairQueue(capacity, lanes, lambda submission: self._recorder.count("dropped"))

    def _check(self, tests: TestSet, language: str) -> None:
        check_judgeable(tests, language, allow_weak=self.config.allow_weak_integrity, level=self.level)
        if missing := _missing_tool(language):
            raise ValueError(f"language {language}: {missing}")

    def _reach(self, python: str, lanes: int) -> tuple[Level, str, Lane]:
        """The best level whose first slot starts and passes its self-test, why not a better one, and its lane."""
        required = Level(self.config.min_level)
        reached: Level | None = None
        failures: dict[Level, Exception] = {}
        for level in levels_to_try(self.config):
            lane = self._lane(0, SlotStarter(level, python))
            lane.start()
            started = lane.wait_first_try(START_S)
            if started and lane.failure is None:
                if not below(level, required):
                    return level, "; ".join(f"{better}: {why(failure)}" for better, failure in failures.items()), lane
                reached = level
            else:
                failures[level] = lane.failure or TimeoutError(f"no slot started within {START_S:.0f} s")
            lane.stop()
            # a queue for each level: if the lane that was given up has a slot after all, it finds no work
            self._queue.close()
            self._queue = self._new_queue(lanes)
        raise refusal(self.config, reached, failures)

    def _lane(self, number: int, start: SlotStarter) -> Lane:
        return Lane(number, self._queue, start, self._recorder, self.config.recycle_after)

    def _submissions(
        self,
        programs: Sequence[Program],
        tests: TestSet,
        limits: Limits | None,
        all_tests: bool | None,
        run: str,
        deadline_s: float | None,
    ) -> list[Submission]:
        for language in {program.language for program in programs}:
            self._check(tests, language)
        deadline = time.monotonic() + (self.config.deadline_s if deadline_s is None else deadline_s)

        def work(program: Program) -> Callable[[LaneSlots, float], Judgement]:
            return lambda slots, seconds: judge(
                slots,
                program,
                tests,
                limits or self.config.limits,
                all_tests=self.config.all_tests if all_tests is None else all_tests,
                allow_weak=self.config.allow_weak_integrity,
                seconds=seconds,
            )

        def infra_error(reason: str) -> Judgement:
            return not_judged(tests, reason)

        return [
            Submission(work=work(program), infra_error=infra_error, run=run, deadline=deadline) for program in programs
        ]

    def _submit(self, submission: Submission) -> None:
        if not self._queue.put([submission], wait_until=submission.deadline):
            self._recorder.count("dropped")
            submission.result.set_result(submission.infra_error("deadline passed in the queue, which was full"))

    def _result(self, submission: Submission) -> Any:
        left_s = submission.deadline - time.monotonic()
        try:
            return submission.result.result(timeout=max(0.0, left_s))
        except CancelledError:
            return submission.infra_error("withdrawn: nobody waits for it")
        except TimeoutError:
            if submission.result.cancel():
                return submission.infra_error(f"deadline passed in the queue{self._trouble()}")
        grace_s = answer_s(self.config)
        try:
            return submission.result.result(timeout=grace_s)
        except TimeoutError:
            return submission.infra_error(f"no verdict within {grace_s:.0f} s after the deadline{self._trouble()}")

    def _trouble(self) -> str:
        """Lanes that have no slot, for the detail of what could not be judged."""
        failed = [lane for lane in self._lanes if lane.failure is not None]
        return f"; {len(failed)} slots do not start: {failed[0].failure}" if failed else ""


def answer_s(config: SandboxConfig) -> float:
    """Seconds beyond a deadline after which its verdict is there: the job under way ends by its own limits."""
    return longest_s(config.limits) + _GRACE_S


@functools.cache
def _missing_tool(language: str) -> str | None:
    return missing_tool(language)


def not_judged(tests: TestSet, reason: str) -> Judgement:
    """The judgement of a program that no slot could judge: our fault, never the program's."""
    return Judgement(
        outcome=Outcome.INFRA_ERROR, tests_passed=0, tests_run=0, tests_total=count_tests(tests), detail=reason
    )


def _no_report(reason: str) -> JobReport:
    return JobReport(
        outcome=Outcome.INFRA_ERROR,
        exit_code=-1,
        cpu_s=0.0,
        wall_s=0.0,
        peak_rss_mib=0.0,
        stdout=b"",
        stderr=reason.encode(),
    )
