"""The sandbox's counters: two readings of one sandbox subtract, those of two sandboxes add up."""

from __future__ import annotations

from funicular.rewards.sandbox.stats import Recorder, SandboxStats
from funicular.rewards.sandbox.types import JobReport, Judgement, Level, Outcome


def judgement(outcome: Outcome, **values: object) -> Judgement:
    return Judgement(outcome=outcome, tests_passed=0, tests_run=1, tests_total=1, **values)


def read(recorder: Recorder) -> SandboxStats:
    return recorder.read(level=Level.L3, waiting=0)


def test_outcomes_and_costs_are_counted() -> None:
    recorder = Recorder(slots=2)
    recorder.judged(judgement(Outcome.OK, cpu_s=0.5, wall_s=1.0), queue_s=0.25)
    recorder.judged(judgement(Outcome.FORBIDDEN, cpu_s=0.25), queue_s=0.75)
    recorder.judged(judgement(Outcome.INFRA_ERROR), queue_s=0.0)
    report = JobReport(outcome=Outcome.OK, exit_code=0, cpu_s=1.0, wall_s=1.0, peak_rss_mib=1.0, stdout=b"", stderr=b"")
    recorder.judged(report, queue_s=0.0)
    recorder.count("dropped")
    stats = read(recorder)
    assert stats.outcomes == {"ok": 2, "forbidden": 1, "infra_error": 1}
    assert (stats.submissions, stats.infra_errors, stats.dropped) == (4, 2, 1)
    assert (stats.cpu_s, stats.wall_s, stats.queue_wait_s) == (1.75, 2.0, 1.0)


def test_the_longest_waits_are_of_the_time_since_the_last_reading() -> None:
    recorder = Recorder(slots=1)
    for wait in range(101):
        recorder.judged(judgement(Outcome.OK), queue_s=float(wait))
    stats = read(recorder)
    assert (stats.queue_wait_max_s, stats.queue_wait_p95_s) == (100.0, 95.0)
    recorder.judged(judgement(Outcome.OK), queue_s=2.0)
    stats = read(recorder)
    assert (stats.queue_wait_max_s, stats.queue_wait_p95_s) == (2.0, 2.0)
    assert read(recorder).queue_wait_max_s == 0.0


def test_a_lane_under_way_counts_as_busy_before_it_is_done() -> None:
    recorder = Recorder(slots=1)
    recorder.began(0)
    first, second = read(recorder), read(recorder)
    assert 0 < first.busy_s < second.busy_s <= second.slot_seconds
    recorder.ended(0, jobs=3)
    done = read(recorder)
    assert done.busy_s >= second.busy_s
    assert done.jobs == 3
    assert read(recorder).busy_s == done.busy_s


def test_readings_of_one_sandbox_subtract() -> None:
    recorder = Recorder(slots=2)
    recorder.judged(judgement(Outcome.OK), queue_s=1.0)
    before = read(recorder)
    recorder.judged(judgement(Outcome.WRONG, cpu_s=2.0), queue_s=3.0)
    recorder.count("recycled")
    change = read(recorder).since(before)
    assert change.outcomes == {"wrong": 1}
    assert (change.submissions, change.recycled, change.cpu_s, change.queue_wait_s) == (1, 1, 2.0, 3.0)
    assert (change.slots, change.queue_wait_max_s, change.level) == (2, 3.0, Level.L3)


def test_sandboxes_add_up_and_a_mixed_level_is_none() -> None:
    one = SandboxStats(level=Level.L3, slots=2, submissions=3, outcomes={"ok": 3}, queue_wait_max_s=1.0)
    two = SandboxStats(level=Level.L1, slots=4, submissions=1, outcomes={"ok": 1}, queue_wait_max_s=5.0)
    both = one.plus(two)
    assert (both.slots, both.submissions, both.outcomes, both.queue_wait_max_s) == (6, 4, {"ok": 4}, 5.0)
    assert both.level is None


def test_the_recent_rate_is_of_what_was_judged() -> None:
    recorder = Recorder(slots=1)
    assert recorder.rate() == 0.0
    for _ in range(10):
        recorder.judged(judgement(Outcome.OK), queue_s=0.0)
    assert recorder.rate() > 0
