"""The queue before the slots: fair, bounded, and nothing stays in it that nobody waits for."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.rewards.sandbox.queue import FairQueue, Submission

LATER = 60.0


def submission(run: str = "a", deadline_s: float = LATER) -> Submission:
    return Submission(
        work=lambda slots, seconds: None,
        infra_error=lambda reason: reason,
        run=run,
        deadline=time.monotonic() + deadline_s,
    )


def queue(capacity: int = 100, lanes: int = 2) -> tuple[FairQueue, list[Submission]]:
    dropped: list[Submission] = []
    return FairQueue(capacity, lanes, dropped.append), dropped


def test_runs_take_turns_however_much_one_of_them_submits() -> None:
    waiting, _ = queue()
    waiting.put([submission("greedy") for _ in range(20)])
    waiting.put([submission("modest") for _ in range(2)])
    taken = [waiting.take(0).run for _ in range(6)]
    assert taken == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_every_submission_is_taken_once_and_each_run_in_its_order(runs: list[str]) -> None:
    waiting, _ = queue()
    put = [submission(run) for run in runs]
    for one in put:
        waiting.put([one])
    taken = [waiting.take(0) for _ in runs]
    assert Counter(map(id, taken)) == Counter(map(id, put))
    for run in set(runs):
        assert [id(s) for s in taken if s.run == run] == [id(s) for s in put if s.run == run]
    assert waiting.waiting == 0


def test_a_full_queue_takes_nothing_more_until_a_lane_takes_something() -> None:
    waiting, _ = queue(capacity=2)
    assert waiting.put([submission(), submission()])
    assert not waiting.put([submission()])
    waiting.take(0)
    assert waiting.put([submission()])


def test_whoever_waits_for_room_gets_in_when_there_is_some() -> None:
    waiting, _ = queue(capacity=1)
    waiting.put([submission()])
    admitted: list[bool] = []
    late = submission()
    thread = threading.Thread(target=lambda: admitted.append(waiting.put([late], wait_until=time.monotonic() + LATER)))
    thread.start()
    waiting.take(0)
    thread.join(timeout=30)
    assert admitted == [True]
    assert waiting.take(0) is late


def test_a_batch_larger_than_the_queue_gets_in_whole_when_there_is_room() -> None:
    waiting, _ = queue(capacity=2)
    assert waiting.put([submission() for _ in range(5)])
    assert waiting.waiting == 5
    assert not waiting.put([submission()])


def test_a_submission_whose_deadline_passed_is_dropped_with_the_reason_and_the_next_is_taken() -> None:
    waiting, dropped = queue()
    late, good = submission(deadline_s=-1), submission()
    waiting.put([late, good])
    assert waiting.take(0) is good
    assert late.result.result(timeout=0) == "deadline passed in the queue"
    assert dropped == [late]


def test_what_nobody_waits_for_is_dropped_and_takes_no_room() -> None:
    waiting, dropped = queue(capacity=2)
    gone = [submission(), submission()]
    waiting.put(gone)
    gone[0].result.cancel()
    good = submission()
    assert waiting.put([good])  # there is room again
    gone[1].result.cancel()
    assert waiting.take(0) is good
    assert dropped == gone


def test_what_lost_its_slot_goes_first_and_to_another_lane() -> None:
    waiting, _ = queue()
    first, second = submission(), submission()
    waiting.put([first, second])
    lost = waiting.take(0)
    waiting.put_back(lost, lost_on=0)
    assert waiting.take(0) is second
    assert waiting.take(1) is lost


def test_a_single_lane_takes_again_what_it_lost() -> None:
    waiting, _ = queue(lanes=1)
    waiting.put([submission()])
    lost = waiting.take(0)
    waiting.put_back(lost, lost_on=0)
    assert waiting.take(0) is lost


def test_waiting_time_is_added_up_over_both_stays() -> None:
    waiting, _ = queue(lanes=1)
    one = submission()
    waiting.put([one])
    one.queued_at -= 3.0
    waiting.put_back(waiting.take(0), lost_on=0)
    one.queued_at -= 4.0
    assert waiting.take(0).waited_s == pytest.approx(7.0, abs=1.0)


def test_closing_ends_lanes_and_tells_whoever_waits() -> None:
    waiting, dropped = queue()
    left = submission()
    taken: list[object] = []
    lane = threading.Thread(target=lambda: taken.extend([waiting.take(0), waiting.take(0)]))
    lane.start()
    waiting.put([submission()])
    while not taken and lane.is_alive() and waiting.waiting:
        time.sleep(0.01)
    waiting.close()
    lane.join(timeout=30)
    assert not lane.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        waiting.put([left])
    waiting.put_back(left, lost_on=0)
    assert left.result.result(timeout=0) == "the sandbox was closed"
    assert left in dropped
