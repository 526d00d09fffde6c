"""Signs of reward hacking: computed from verdicts, warned of once each."""

from __future__ import annotations

import pytest

from funicular.actors.types import GenerationRecord, ScoredGroup
from funicular.launch.hack_signals import STEPS_BEFORE_JUMPS, HackSignals
from funicular.rewards.types import Status, Task, Verdict

TASK = Task(task_id="t", prompt="Q", answer="5", verifier="code")


def group(*verdicts: Verdict, length: int = 10) -> ScoredGroup:
    count = len(verdicts)
    record = GenerationRecord(
        group_id="g",
        generator="fake",
        prompt_tokens=3,
        lengths_G=(length,) * count,
        truncated_G=(False,) * count,
        finite_G=(True,) * count,
        oldest_version=0,
        newest_version=0,
        seconds=0.1,
    )
    return ScoredGroup(
        group_id="g", slot=0, task=TASK, generation=record, verdicts_G=verdicts, payload=None, scoring_seconds=0.1
    )


def verdict(status: Status = Status.FAILED, **details: str) -> Verdict:
    return Verdict(reward=0.0, breakdown={}, status=status, details=details)


def passing(rate: float, length: int) -> ScoredGroup:
    return group(*(verdict(Status.PASSED if n < 10 * rate else Status.FAILED) for n in range(10)), length=length)


def test_signals_of_the_sandbox_are_summed_over_the_batch() -> None:
    metrics = HackSignals().observe(
        [
            group(
                verdict(outcome="forbidden", denied="socket:2,fork:1", protocol_violations="0", canary_read="false"),
                verdict(outcome="ok", denied="", protocol_violations="3", canary_read="true"),
            ),
            group(verdict(outcome="wrong"), verdict(Status.INFRA_ERROR)),
        ],
        warn=lambda text: None,
    )
    assert metrics == {
        "hack/denied_calls": 3.0,
        "hack/protocol_violations": 3.0,
        "hack/canary_reads": 1.0,
        "hack/forbidden_frac": pytest.approx(1 / 3),
    }


def test_a_run_without_code_has_no_signals_of_the_sandbox() -> None:
    assert HackSignals().observe([group(verdict(Status.PASSED, extracted="5"))], warn=lambda text: None) == {}


def test_each_signal_is_warned_of_once() -> None:
    signals, warnings = HackSignals(), []
    bad = group(verdict(outcome="wrong", canary_read="true"))
    for _ in range(3):
        signals.observe([bad], warnings.append)
    assert len(warnings) == 1
    assert "hack/canary_reads" in warnings[0]
    signals.observe([group(verdict(outcome="forbidden", denied="socket:1"))], warnings.append)
    assert [text.split("? ")[1].split()[0] for text in warnings[1:]] == ["hack/denied_calls", "hack/forbidden_frac"]


def test_a_pass_rate_that_jumps_while_completions_get_shorter_is_a_signal() -> None:
    signals, warnings = HackSignals(), []
    for _ in range(STEPS_BEFORE_JUMPS):
        assert "hack/pass_rate_jump" not in signals.observe([passing(0.2, length=100)], warnings.append)
    assert signals.observe([passing(0.2, length=90)], warnings.append)["hack/pass_rate_jump"] == 0.0
    assert warnings == []
    assert signals.observe([passing(0.9, length=30)], warnings.append)["hack/pass_rate_jump"] == pytest.approx(0.7)
    assert len(warnings) == 1


def test_a_pass_rate_that_rises_with_longer_completions_is_learning() -> None:
    signals, warnings = HackSignals(), []
    for _ in range(STEPS_BEFORE_JUMPS):
        signals.observe([passing(0.2, length=100)], warnings.append)
    assert signals.observe([passing(0.9, length=150)], warnings.append)["hack/pass_rate_jump"] == 0.0
    assert warnings == []


def test_what_was_not_judged_is_in_no_pass_rate() -> None:
    signals = HackSignals()
    for _ in range(STEPS_BEFORE_JUMPS + 1):
        metrics = signals.observe([group(verdict(Status.INFRA_ERROR))], warn=lambda text: None)
    assert metrics == {}
