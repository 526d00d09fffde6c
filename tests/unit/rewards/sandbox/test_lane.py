"""What a lane does when its slots die, wear out or do not start, over slots that do so on command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from funicular.rewards.sandbox.lane import Lane
from funicular.rewards.sandbox.lane_slots import LaneSlots
from funicular.rewards.sandbox.queue import FairQueue, Submission
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotLost, SlotRole
from funicular.rewards.sandbox.stats import Recorder, SandboxStats
from funicular.rewards.sandbox.types import Judgement, Level, Outcome

PATIENCE_S = 30.0


class FakeSlot:
    """A slot that runs nothing."""

    def __init__(self, role: SlotRole, lane: int) -> None:
        self.name = f"{lane}-{role.value}"
        self.jobs = 0
        self.worn = False
        self.killed = False
        self.immortal = False
        self.memory = 50.0

    def rss_mib(self) -> float:
        return self.memory

    def kill(self) -> None:
        self.killed = True
        if self.immortal:
            raise TimeoutError("it does not end")


class FakeMachine:
    """Starts fake slots, and remembers them; `refuse` makes it fail so many times."""

    def __init__(self) -> None:
        self.made: list[FakeSlot] = []
        self.refuse = 0

    def start(self, role: SlotRole, lane: int) -> Any:
        if self.refuse:
            self.refuse -= 1
            raise SlotFailed("no memory")
        self.made.append(FakeSlot(role, lane))
        return self.made[-1]


class World:
    """Lanes over fake slots."""

    def __init__(self, lanes: int = 1, recycle_after: int = 100) -> None:
        self.machine = FakeMachine()
        self.recorder = Recorder(lanes)
        self.queue = FairQueue(100, lanes, lambda submission: self.recorder.count("dropped"))
        self.lanes = [
            Lane(number, self.queue, self.machine.start, self.recorder, recycle_after) for number in range(lanes)
        ]
        for lane in self.lanes:
            lane.start()
            assert lane.wait_first_try(PATIENCE_S)

    def ask(self, work: Callable[[LaneSlots], Any], deadline_s: float = 60.0) -> Submission:
        submission = Submission(
            work=lambda slots, seconds: work(slots),
            infra_error=lambda reason: judgement(Outcome.INFRA_ERROR, reason),
            run="r",
            deadline=time.monotonic() + deadline_s,
        )
        self.queue.put([submission])
        return submission

    def judge(self, work: Callable[[LaneSlots], Any]) -> Judgement:
        return self.ask(work).result.result(timeout=PATIENCE_S)

    def stats(self) -> SandboxStats:
        return self.recorder.read(level=Level.L3, waiting=0)

    def close(self) -> None:
        self.queue.close()
        for lane in self.lanes:
            lane.stop()
        assert all(lane.join(PATIENCE_S) for lane in self.lanes)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()
    assert all(slot.killed for slot in world.machine.made)


def judgement(outcome: Outcome = Outcome.OK, detail: str = "") -> Judgement:
    return Judgement(outcome=outcome, tests_passed=0, tests_run=0, tests_total=1, detail=detail)


def use(slots: LaneSlots, role: SlotRole = SlotRole.CANDIDATE) -> Judgement:
    slots.get(role).jobs += 1
    return judgement(detail=slots.get(role).name)


def loses_its_slot(times: int) -> Callable[[LaneSlots], Judgement]:
    left = [times]

    def work(slots: LaneSlots) -> Judgement:
        judged = use(slots)
        if left[0]:
            left[0] -= 1
            raise SlotLost("silent")
        return judged

    return work


def test_only_the_candidate_slot_starts_before_it_is_needed(world: World) -> None:
    assert [slot.name for slot in world.machine.made] == ["0-candidate"]
    assert world.judge(lambda slots: use(slots, SlotRole.TESTER)).detail == "0-tester"
    assert world.judge(lambda slots: use(slots, SlotRole.TESTER)).detail == "0-tester"
    assert [slot.name for slot in world.machine.made] == ["0-candidate", "0-tester"]


def test_a_lost_slot_is_replaced_and_its_submission_judged_again(world: World) -> None:
    assert world.judge(loses_its_slot(1)).outcome is Outcome.OK
    first, second = world.machine.made
    assert first.killed
    assert not second.killed
    stats = world.stats()
    assert (stats.restarts, stats.retried, stats.infra_errors, stats.submissions) == (1, 1, 0, 1)
    assert stats.jobs == 2


def test_a_submission_that_loses_two_slots_is_an_infra_error_and_the_next_is_judged(world: World) -> None:
    lost = world.judge(loses_its_slot(2))
    assert (lost.outcome, lost.detail) == (Outcome.INFRA_ERROR, "SlotLost: silent")
    assert world.judge(use).outcome is Outcome.OK
    stats = world.stats()
    assert (stats.restarts, stats.retried, stats.infra_errors) == (2, 1, 1)


def test_another_lane_judges_what_lost_its_slot() -> None:
    world = World(lanes=2)
    lanes: list[str] = []

    def work(slots: LaneSlots) -> Judgement:
        lanes.append(threading.current_thread().name)
        if len(lanes) == 1:
            raise SlotLost("silent")
        return use(slots)

    assert world.judge(work).outcome is Outcome.OK
    assert len(set(lanes)) == 2
    world.close()


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), SystemExit(3)], ids=repr)
def test_a_fault_of_ours_costs_one_submission_and_not_the_lane(world: World, error: BaseException) -> None:
    def work(slots: LaneSlots) -> Judgement:
        raise error

    failed = world.judge(work)
    assert failed.outcome is Outcome.INFRA_ERROR
    assert failed.detail == f"{type(error).__name__}: {error}"
    assert world.machine.made[0].killed
    assert world.judge(use).outcome is Outcome.OK
    assert world.stats().retried == 0


def test_a_submission_without_a_verdict_is_judged_once_more(world: World) -> None:
    asked: list[int] = []

    def work(slots: LaneSlots) -> Judgement:
        asked.append(1)
        return judgement(Outcome.OK if len(asked) == 2 else Outcome.INFRA_ERROR, "the tests gave no verdict")

    assert world.judge(work).outcome is Outcome.OK
    assert world.judge(work).outcome is Outcome.INFRA_ERROR
    assert len(asked) == 4
    stats = world.stats()
    assert (stats.retried, stats.restarts, stats.infra_errors, stats.submissions) == (2, 0, 1, 2)


def test_a_submission_without_a_verdict_is_not_judged_again_after_its_deadline(world: World) -> None:
    def work(slots: LaneSlots) -> Judgement:
        time.sleep(0.1)
        return judgement(Outcome.INFRA_ERROR, "the deadline passed")

    late = world.ask(work, deadline_s=0.05).result.result(timeout=PATIENCE_S)
    assert late.detail.startswith(("the deadline passed", "deadline passed"))
    assert world.stats().retried == 0


def test_a_fault_outside_the_judging_answers_and_the_lane_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise KeyError("a lane that never began")

    with monkeypatch.context() as faults:
        faults.setattr(world.recorder, "judged", failing)
        failed = world.judge(use)
    assert (failed.outcome, failed.detail) == (Outcome.INFRA_ERROR, "KeyError: 'a lane that never began'")
    assert world.judge(use).outcome is Outcome.OK


def test_a_lane_that_is_stopped_while_its_slot_starts_takes_nothing() -> None:
    starting, go = threading.Event(), threading.Event()
    made: list[FakeSlot] = []

    def start(role: SlotRole, lane: int) -> Any:
        starting.set()
        assert go.wait(PATIENCE_S)
        made.append(FakeSlot(role, lane))
        return made[-1]

    recorder = Recorder(1)
    queue = FairQueue(10, 1, lambda submission: None)
    lane = Lane(0, queue, start, recorder, 100)
    lane.start()
    assert starting.wait(PATIENCE_S)
    lane.stop()
    deadline = time.monotonic() + PATIENCE_S
    queue.put([Submission(work=lambda slots, _: use(slots), infra_error=judgement, run="r", deadline=deadline)])
    go.set()
    assert lane.join(PATIENCE_S)
    assert queue.waiting == 1
    assert made[0].killed


def test_a_slot_that_does_not_end_is_left_behind_and_the_lane_goes_on(world: World) -> None:
    world.machine.made[0].immortal = True
    assert world.judge(loses_its_slot(1)).outcome is Outcome.OK
    assert len(world.machine.made) == 2


def test_a_slot_that_does_not_start_is_tried_again_before_anything_is_taken(world: World) -> None:
    world.machine.refuse = 2
    assert world.judge(loses_its_slot(1)).outcome is Outcome.OK
    assert world.stats().restarts == 3
    assert world.lanes[0].failure is None


@pytest.mark.parametrize("wear", ["jobs", "memory", "worn"])
def test_a_worn_slot_is_recycled_between_submissions(wear: str) -> None:
    world = World(recycle_after=10)

    def work(slots: LaneSlots) -> Judgement:
        slot: Any = slots.get(SlotRole.CANDIDATE)
        slot.jobs += 10 if wear == "jobs" else 1
        slot.memory = 500.0 if wear == "memory" else slot.memory
        slot.worn = wear == "worn"
        assert slots.get(SlotRole.CANDIDATE) is slot
        return judgement()

    jobs = sum(10 if wear == "jobs" else 1 for _ in range(2))
    assert world.judge(work).outcome is Outcome.OK
    assert world.judge(work).outcome is Outcome.OK
    world.close()
    assert len(world.machine.made) >= 2
    assert world.machine.made[0].killed
    stats = world.stats()
    assert stats.recycled == 2
    assert stats.restarts == 0
    assert stats.jobs == jobs


def test_a_slot_in_use_is_not_recycled_for_little_more_memory(world: World) -> None:
    def work(slots: LaneSlots) -> Judgement:
        slot: Any = slots.get(SlotRole.CANDIDATE)
        slot.memory += 30.0
        return judgement()

    for _ in range(3):
        world.judge(work)
    assert world.stats().recycled == 0
    world.judge(work)
    world.judge(use)
    assert world.stats().recycled == 1


def test_a_deadline_passes_in_the_queue_while_the_only_lane_is_busy(world: World) -> None:
    release = threading.Event()

    def busy(slots: LaneSlots) -> Judgement:
        release.wait(PATIENCE_S)
        return judgement()

    first = world.ask(busy)
    late = world.ask(use, deadline_s=0.05)
    time.sleep(0.1)
    release.set()
    assert first.result.result(timeout=PATIENCE_S).outcome is Outcome.OK
    dropped = late.result.result(timeout=PATIENCE_S)
    assert (dropped.outcome, dropped.detail) == (Outcome.INFRA_ERROR, "deadline passed in the queue")
    stats = world.stats()
    assert (stats.dropped, stats.infra_errors, stats.submissions) == (1, 1, 1)
