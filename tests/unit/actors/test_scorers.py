"""Scorers as one service: who is replaced, what is tried again, and what a group can fail with."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from funicular.actors.errors import GroupFailed, RunStopped
from funicular.actors.readings import Reading
from funicular.actors.scorer import ErrorStreaks, ScoreReport
from funicular.actors.scorers import Scorers
from funicular.cluster.supervise import RestartBudget, RestartBudgetSpent
from funicular.rewards.runner import RewardLoadError
from funicular.rewards.types import Task
from tests.fakes import FakeMethod

TASK = Task(task_id="t", prompt="Q", answer="5", verifier="exact_number")
REPORT = ScoreReport(verdicts_G=(), seconds=0.0, raised={})

Answer = Callable[[], Awaitable[ScoreReport]]


class FakeScorerActor:
    """Answers each call by the next of the world's answers; like a Ray actor, one call after the other."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world
        self._one_at_a_time = asyncio.Lock()
        self.score = FakeMethod(self._score)
        self.use_pools = FakeMethod(self._use_pools)
        self.pools: list[str] = []

    async def _use_pools(self, pools: list[str]) -> None:
        self.pools = pools

    async def _score(self, task: Task, payload: object) -> ScoreReport:
        async with self._one_at_a_time:
            self._world.asked.append(self)
            return await (self._world.answers.pop(0) if self._world.answers else good)()


class FakeWorld:
    """Makes and kills actors, and says what they answer; `good` when it has nothing to say."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.made: list[FakeScorerActor] = []
        self.asked: list[FakeScorerActor] = []
        self.killed: list[FakeScorerActor] = []

    def make(self, name: str) -> FakeScorerActor:
        self.made.append(FakeScorerActor(self))
        return self.made[-1]

    def service(
        self, *, count: int = 1, deadline_s: float = 30.0, restarts: int = 9, pools: FakePools | None = None
    ) -> Scorers:
        return Scorers(
            self.make,
            count=count,
            deadline_s=deadline_s,
            streaks=ErrorStreaks(1),
            budget=RestartBudget(restarts),
            kill_actor=self.killed.append,
            pools=pools,  # type: ignore[arg-type]
        )


class FakePools:
    """Sandbox pools that come and go."""

    def __init__(self) -> None:
        self.changes = self.departures = 0
        self.joins_at_look = False
        self.handles = ["first"]
        self.leaves_at_look = False

    def change(self, *handles: str) -> None:
        self.handles = list(handles)
        self.changes += 1

    async def some(self) -> None:
        assert self.handles

    async def follow(self) -> None:
        if self.leaves_at_look:
            self.leaves_at_look = False
            self.departures += 1
            self.change("second")
        if self.joins_at_look:
            self.change(*self.handles, "another")

    async def now(self) -> list[Reading]:
        return [Reading(name="now/sandbox_waiting", value=7)]


async def good() -> ScoreReport:
    return REPORT


def failing(error: Exception) -> Answer:
    async def fail() -> ScoreReport:
        raise error

    return fail


async def hang() -> ScoreReport:
    await asyncio.Event().wait()
    raise AssertionError


async def test_groups_queue_longer_than_the_deadline_and_nothing_is_killed() -> None:
    async def slow() -> ScoreReport:
        await asyncio.sleep(0.2)
        return REPORT

    world = FakeWorld(*[slow] * 6)
    scorers = world.service(deadline_s=0.6)
    assert await asyncio.gather(*(scorers.score(TASK, None) for _ in range(6))) == [REPORT] * 6
    assert world.killed == []


async def test_a_death_is_tried_again_on_the_new_actor() -> None:
    world = FakeWorld(failing(RayActorError()))
    assert await world.service().score(TASK, None) is REPORT
    assert world.killed == world.made[:1]
    assert world.asked == world.made[:2]


async def test_a_group_that_waits_behind_a_death_goes_to_the_new_actor() -> None:
    world = FakeWorld(failing(RayActorError()))
    scorers = world.service()
    assert await asyncio.gather(scorers.score(TASK, None), scorers.score(TASK, None)) == [REPORT] * 2
    first, second = world.made
    assert world.asked == [first, second, second]


async def test_a_scorer_that_does_not_answer_is_replaced() -> None:
    world = FakeWorld(hang)
    assert await world.service(deadline_s=0.05).score(TASK, None) is REPORT
    assert world.killed == world.made[:1]


async def test_a_group_over_which_scorers_die_fails_for_good() -> None:
    world = FakeWorld(*[failing(RayActorError())] * 2)
    with pytest.raises(GroupFailed, match=r"scorer_died: scorer-0: t: ") as caught:
        await world.service().score(TASK, None)
    assert caught.value.reason == "scorer_died"
    assert len(world.killed) == 2


@pytest.mark.parametrize(
    "error",
    [
        RewardLoadError("no module named x\nand more"),
        subprocess.TimeoutExpired("child", 10),
        TimeoutError(),
        RayError("Exception Locked isn't serializable"),
        RayTaskError("score", "SystemExit: 3", SystemExit(3), proctitle="scorer", pid=1, ip="127.0.0.1"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_scorer_that_raises_is_replaced_and_fails_the_group_when_it_does_so_again(error: Exception) -> None:
    world = FakeWorld(failing(error))
    assert await world.service().score(TASK, None) is REPORT
    assert world.killed == world.made[:1]

    world = FakeWorld(failing(error), failing(error))
    with pytest.raises(GroupFailed) as caught:
        await world.service().score(TASK, None)
    assert caught.value.reason == "scorer_failed"
    assert caught.value.detail.startswith(f"scorer-0: t: {type(error).__name__}: ")
    assert "\n" not in caught.value.detail


async def test_a_lost_payload_is_not_the_scorers_fault() -> None:
    world = FakeWorld(failing(ObjectLostError("00" * 28, None, "")))
    with pytest.raises(GroupFailed) as caught:
        await world.service().score(TASK, None)
    assert caught.value.reason == "payload_lost"
    assert world.killed == []


@pytest.mark.parametrize("error", [RunStopped("a person must act"), GroupFailed("void", "nothing to score")])
async def test_what_is_meant_for_the_loop_passes(error: Exception) -> None:
    world = FakeWorld(failing(error))
    with pytest.raises(type(error)) as caught:
        await world.service().score(TASK, None)
    assert caught.value is error
    assert world.killed == []


async def test_a_function_that_raises_in_too_many_groups_stops_the_run() -> None:
    async def raised() -> ScoreReport:
        return ScoreReport(verdicts_G=(), seconds=0.0, raised={"mine.py:f": "KeyError: x"})

    with pytest.raises(RunStopped, match=r"mine\.py:f"):
        await FakeWorld(raised).service().score(TASK, None)


async def test_a_spent_budget_ends_the_run() -> None:
    with pytest.raises(RestartBudgetSpent, match="scorer-0"):
        await FakeWorld(failing(RayActorError())).service(restarts=0).score(TASK, None)


async def test_the_least_loaded_takes_the_next_group() -> None:
    world = FakeWorld()
    scorers = world.service(count=2)
    await asyncio.gather(scorers.score(TASK, None), scorers.score(TASK, None))
    assert set(world.asked) == set(world.made)


async def test_a_scorer_hears_of_pools_that_joined_or_left_before_its_next_group_and_only_then() -> None:
    world, pools = FakeWorld(), FakePools()
    scorers = world.service(pools=pools)
    await scorers.score(TASK, None)
    (scorer,) = world.made
    assert scorer.pools == [], "it was made with those that were there"
    pools.change("first", "second")
    await scorers.score(TASK, None)
    assert scorer.pools == ["first", "second"]
    scorer.pools = []
    await scorers.score(TASK, None)
    assert scorer.pools == []


async def test_a_group_whose_pools_left_while_it_was_judged_is_judged_by_the_others_and_nobody_is_blamed() -> None:
    world, pools = FakeWorld(raised), FakePools()
    pools.leaves_at_look = True
    assert await world.service(pools=pools).score(TASK, None) is REPORT
    (scorer,) = world.made
    assert (world.killed, scorer.pools) == ([], ["second"])


async def test_a_verifier_that_raises_while_no_pool_left_counts() -> None:
    for joins in (False, True):
        pools = FakePools()
        pools.joins_at_look = joins
        with pytest.raises(RunStopped, match="verifier code raised in 1 groups"):
            await FakeWorld(raised).service(pools=pools).score(TASK, None)


async def raised() -> ScoreReport:
    return ScoreReport(verdicts_G=(), seconds=0.0, raised={"verifier code": "PoolsDead: no sandbox pool answers"})


async def test_what_scorers_do_now_is_told_with_what_their_pools_do() -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def slow() -> ScoreReport:
        begun.set()
        await end.wait()
        return REPORT

    scorers = FakeWorld(slow).service(count=2, pools=FakePools())
    groups = [asyncio.create_task(scorers.score(TASK, None)) for _ in range(1)]
    await begun.wait()
    scorers._members[1].in_flight = 9  # so that the next one queues behind the first
    groups.append(asyncio.create_task(scorers.score(TASK, None)))
    await asyncio.sleep(0)
    scorers._members[1].in_flight = 0
    now = {(reading.name, *reading.labels.values()): reading.value for reading in await scorers.now()}
    assert now == {
        ("now/groups", "scorer-0"): 2,
        ("now/groups", "scorer-1"): 0,
        ("now/scorers", "busy"): 1,
        ("now/scorers", "idle"): 1,
        ("now/scorers_waiting",): 1,
        ("now/sandbox_waiting",): 7,
    }
    end.set()
    await asyncio.gather(*groups)
