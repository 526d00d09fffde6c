"""The sandbox as a whole, on real slots: verdicts, levels and refusals, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from funicular.rewards.sandbox import sandbox as sandbox_module
from funicular.rewards.sandbox import types
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable, refusal
from funicular.rewards.sandbox.queue import SandboxBusy
from funicular.rewards.sandbox.sandbox import Sandbox, answer_s
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotRole
from funicular.rewards.sandbox.types import (
    CallCase,
    CallTests,
    Level,
    Limits,
    Outcome,
    Program,
    StdioCase,
    StdioTests,
)

DOUBLE = Program(source="print(int(input()) * 2)")
TRIPLE = Program(source="print(int(input()) * 3)")
SPIN = Program(source="while True: pass")
STDIO = StdioTests(cases=tuple(StdioCase(stdin=f"{n}\n", stdout=f"{2 * n}\n") for n in (1, 2, 3)))
CALLS = CallTests(function="double", cases=(CallCase(arguments=(2,), expected=4), CallCase(arguments=(3,), expected=6)))
ASSERTS = types.TesterTests(
    style=types.TesterStyle.ASSERTS, source="", statements=("assert double(2) == 4", "assert double(3) == 6")
)
SHORT = Limits(cpu_s=0.3)
PATIENCE_S = 60.0


@pytest.fixture(scope="module", params=["auto", "L1"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(slots=2, isolation=request.param)) as sandbox:
        yield sandbox


def function(body: str) -> Program:
    return Program(source=f"def double(n):\n    {body}\n")


@pytest.mark.parametrize(
    ("tests", "good", "bad"),
    [
        (STDIO, DOUBLE, TRIPLE),
        (CALLS, function("return 2 * n"), function("return n + 2")),
        (ASSERTS, function("return 2 * n"), function("return n + 2")),
    ],
    ids=["stdio", "calls", "asserts"],
)
def test_good_programs_pass_and_bad_ones_fail(
    sandbox: Sandbox, tests: types.TestSet, good: Program, bad: Program
) -> None:
    verdicts = sandbox.judge_many([good, bad, good, bad], tests)
    assert [verdict.passed for verdict in verdicts] == [True, False, True, False]
    assert all(verdict.level is sandbox.level for verdict in verdicts)
    assert all(verdict.queue_s >= 0 for verdict in verdicts)


def test_a_program_runs_without_tests(sandbox: Sandbox) -> None:
    report = sandbox.run(Program(source="print(input()[::-1])"), b"abc\n")
    assert (report.outcome, report.exit_code, report.stdout) == (Outcome.OK, 0, b"cba\n")


def test_a_language_without_its_tool_is_refused_before_a_slot_is_touched(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "_missing_tool", lambda language: "no g++ here: install the package g++")
    before = sandbox.stats()
    expected = "install the package" if sandbox.level is Level.L3 else "needs level L3"
    cpp = Program(source="int main() {}", language="cpp")
    with pytest.raises(ValueError, match=expected):
        sandbox.judge(cpp, STDIO)
    with pytest.raises(ValueError, match=expected):
        sandbox.run(cpp)
    assert sandbox.stats().since(before).submissions == 0


def test_an_answer_is_awaited_until_whatever_was_begun_has_ended() -> None:
    config = SandboxConfig(cpu_s=20.0)
    longest = config.limits.longest_wall_s
    assert answer_s(config) > 2 * longest  # a compilation and a run, each with such limits, or candidate and tests


def test_limits_of_one_call_replace_those_of_the_config(sandbox: Sandbox) -> None:
    assert sandbox.judge(SPIN, STDIO, limits=SHORT).outcome is Outcome.CPU
    assert sandbox.run(SPIN, limits=SHORT).outcome is Outcome.CPU


def test_all_tests_are_run_when_that_is_asked_for(sandbox: Sandbox) -> None:
    once = Program(source="n = int(input())\nprint(2 * n if n != 2 else 0)")
    assert sandbox.judge(once, STDIO).tests_run == 2
    fraction = sandbox.judge(once, STDIO, all_tests=True)
    assert (fraction.tests_passed, fraction.tests_run, fraction.tests_total) == (2, 3, 3)


def test_what_is_not_judged_by_its_deadline_is_an_infra_error_and_the_rest_has_its_verdict(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(sandbox.judge_many, [SPIN] * 6, STDIO, limits=SHORT)
        late = threads.submit(sandbox.judge_many, [DOUBLE] * 2, STDIO, deadline_s=0.0)
        assert {verdict.outcome for verdict in late.result(PATIENCE_S)} == {Outcome.INFRA_ERROR}
        assert {verdict.outcome for verdict in busy.result(PATIENCE_S)} == {Outcome.CPU}
    assert "deadline passed in the queue" in late.result()[0].detail


def test_a_killed_slot_is_replaced_and_its_submission_judged_again(sandbox: Sandbox) -> None:
    before = sandbox.stats()
    slots = [lane._slots.get(SlotRole.CANDIDATE) for lane in sandbox._lanes]
    for slot in slots:
        os.kill(slot.pid, signal.SIGKILL)
    verdicts = sandbox.judge_many([DOUBLE] * 6, STDIO)
    stats = sandbox.stats().since(before)
    judged = [verdict for verdict in verdicts if verdict.outcome is not Outcome.INFRA_ERROR]
    assert all(verdict.passed for verdict in judged)
    assert len(judged) >= 5  # one may have lost its slot on both lanes
    assert stats.restarts >= 2


def test_counters_follow_what_was_judged(sandbox: Sandbox) -> None:
    before = sandbox.stats()
    sandbox.judge_many([DOUBLE, TRIPLE], STDIO, run="a")
    stats = sandbox.stats().since(before)
    assert stats.outcomes == {"ok": 1, "wrong": 1}
    assert (stats.submissions, stats.jobs, stats.level) == (2, 4, sandbox.level)
    assert 0 < stats.busy_s < stats.slot_seconds
    assert stats.cpu_s > 0


def test_an_offer_is_refused_when_the_queue_is_full_and_says_when_to_come_back() -> None:
    with Sandbox(SandboxConfig(slots=1, queue=2)) as sandbox:
        taken = sandbox.offer([SPIN] * 10, STDIO, limits=SHORT)
        with pytest.raises(SandboxBusy) as refused:
            sandbox.offer([SPIN], STDIO, limits=SHORT)
        assert refused.value.retry_after_s > 0
        sandbox.withdraw(taken)
        verdicts = sandbox.collect(taken)
        assert {verdict.outcome for verdict in verdicts} <= {Outcome.INFRA_ERROR, Outcome.CPU}
        assert "withdrawn" in verdicts[-1].detail
        assert sandbox.judge(DOUBLE, STDIO).passed
        assert sandbox.stats().refused == 1


def test_whoever_waits_for_room_is_served_when_there_is_some() -> None:
    with Sandbox(SandboxConfig(slots=1, queue=1)) as sandbox:
        assert all(verdict.passed for verdict in sandbox.judge_many([DOUBLE] * 5, STDIO))


def test_closing_ends_every_process_and_answers_whoever_waits() -> None:
    before = set(psutil.Process().children(recursive=True))
    sandbox = Sandbox(SandboxConfig(slots=2))
    slots = set(psutil.Process().children(recursive=True)) - before
    assert len(slots) >= 2
    verdicts: list[Outcome] = []
    waiting = threading.Thread(target=lambda: verdicts.extend(v.outcome for v in sandbox.judge_many([SPIN] * 8, STDIO)))
    waiting.start()
    while not sandbox.stats().busy_s:
        pass
    sandbox.close()
    waiting.join(PATIENCE_S)
    assert len(verdicts) == 8
    assert Outcome.INFRA_ERROR in verdicts
    _, alive = psutil.wait_procs(slots, timeout=PATIENCE_S)
    assert alive == []
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.judge(DOUBLE, STDIO)


def test_a_level_below_the_required_one_is_refused_before_anything_starts() -> None:
    with pytest.raises(IsolationUnavailable, match=r"sandbox\.isolation=L1 is below sandbox\.min_level=L3"):
        Sandbox(SandboxConfig(isolation="L1", min_level="L3"))


def test_a_forced_level_is_the_level_and_says_why_it_is_not_higher(sandbox: Sandbox) -> None:
    if sandbox.config.isolation == "auto":
        assert (sandbox.level is Level.L3) == (sandbox.why_not_higher == "")
    else:
        assert sandbox.level is Level.L1


def test_an_interpreter_that_does_not_start_is_refused_with_the_reason() -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(IsolationUnavailable, match=r"reaches no isolation level") as refused:
        Sandbox(SandboxConfig(slots=1), python="/nonexistent/python")
    assert "L3:" in str(refused.value)
    assert "L1:" in str(refused.value)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_refusal_names_levels_reason_switch_and_key() -> None:
    failed = SlotFailed("unshare: Operation not permitted", switch="sysctl kernel.unprivileged_userns_clone=1")
    text = str(refusal(SandboxConfig(min_level="L3"), Level.L1, {Level.L3: failed}))
    assert "sandbox.min_level=L3: this node reaches L1" in text
    assert "unshare: Operation not permitted" in text
    assert "kernel.unprivileged_userns_clone=1" in text
    assert "sandbox.min_level=L1" in text
