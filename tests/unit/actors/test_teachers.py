"""Teachers as one service: groups wait for a teacher that died, and fail with a reason where that does not help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayActorError

from funicular.actors.errors import GroupFailed, RunStopped
from funicular.actors.teachers import Teachers
from funicular.actors.types import TeacherRecord
from funicular.cluster.supervise import RestartBudget
from tests.fakes import FakeMethod


class FakeScoring:
    """`score` with two results, of which the first may be an exception."""

    def __init__(self, actor: FakeTeacherActor) -> None:
        self._actor = actor

    def remote(self, payload: str) -> tuple[Any, str]:
        return asyncio.ensure_future(self._actor.do_score(payload)), f"scores of {payload}"


class FakeTeacherActor:
    """Answers, unless the world wants it otherwise."""

    def __init__(self, name: str, world: FakeWorld) -> None:
        self.name = name
        self.world = world
        self.score = FakeScoring(self)

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self, f"do_{name}"))

    async def do_start(self) -> float:
        self.world.on_start(self)
        return 0.0

    async def do_health(self) -> str:
        return self.name

    async def do_score(self, payload: str) -> TeacherRecord:
        await asyncio.sleep(0.001)
        self.world.on_score(self)
        return TeacherRecord(group_id=payload, teacher=self.name, finite_G=(True,), seconds=0.001)


class FakeWorld:
    """Makes and kills actors, and decides what goes wrong."""

    def __init__(self) -> None:
        self.made: list[FakeTeacherActor] = []
        self.killed: list[FakeTeacherActor] = []
        self.on_start: Callable[[FakeTeacherActor], None] = lambda actor: None
        self.on_score: Callable[[FakeTeacherActor], None] = lambda actor: None

    def make(self, name: str) -> FakeTeacherActor:
        self.made.append(FakeTeacherActor(name, self))
        return self.made[-1]

    async def service(self, count: int = 1, limit: int = 3) -> Teachers:
        teachers = Teachers(
            self.make, count=count, start_deadline_s=1.0, budget=RestartBudget(limit), kill_actor=self.killed.append
        )
        await teachers.start()
        return teachers


async def test_groups_go_to_the_least_loaded_and_their_scores_come_back_unread() -> None:
    world = FakeWorld()
    teachers = await world.service(2)
    answers = await asyncio.gather(*(teachers.score(f"g{i}", f"p{i}") for i in range(4)))
    assert sorted(record.teacher for record, _ in answers) == ["teacher-0", "teacher-0", "teacher-1", "teacher-1"]
    assert [scores for _, scores in answers] == [f"scores of p{i}" for i in range(4)]
    assert (await teachers.metrics())["teachers/serving"] == 2


@pytest.mark.parametrize("death", [RayActorError(), GroupFailed("engine_died"), GroupFailed("no_progress")])
async def test_a_group_of_a_dead_teacher_waits_for_the_rebuilt_one(death: Exception) -> None:
    world = FakeWorld()
    teachers = await world.service()
    first = world.made[0]

    def die(actor: FakeTeacherActor) -> None:
        if actor is first:
            raise death

    world.on_score = die
    record, _ = await teachers.score("g1", "p1")
    assert record.group_id == "p1"
    assert world.killed == [first]
    assert len(world.made) == 2


async def test_a_group_over_which_teachers_keep_dying_fails_with_the_reason() -> None:
    world = FakeWorld()
    teachers = await world.service()

    def die(actor: FakeTeacherActor) -> None:
        raise GroupFailed("engine_died", "killed")

    world.on_score = die
    with pytest.raises(GroupFailed, match=r"teacher_died.*killed"):
        await teachers.score("g1", "p1")
    assert len(world.killed) >= 1


async def test_what_the_engine_cannot_score_fails_the_group_and_costs_no_teacher() -> None:
    world = FakeWorld()
    teachers = await world.service()

    def refuse(actor: FakeTeacherActor) -> None:
        raise GroupFailed("refused", "token id out of vocabulary", retry_task=False)

    world.on_score = refuse
    with pytest.raises(GroupFailed, match="teacher_failed: refused") as caught:
        await teachers.score("g1", "p1")
    assert not caught.value.retry_task
    assert world.killed == []


async def test_a_lost_payload_fails_the_group() -> None:
    world = FakeWorld()
    teachers = await world.service()

    def lose(actor: FakeTeacherActor) -> None:
        raise ObjectLostError("0" * 56, None, "")

    world.on_score = lose
    with pytest.raises(GroupFailed, match="payload_lost"):
        await teachers.score("g1", "p1")
    assert world.killed == []


async def test_the_run_stops_when_no_teacher_can_be_brought_back() -> None:
    world = FakeWorld()
    teachers = await world.service(limit=2)

    def die(actor: FakeTeacherActor) -> None:
        raise RayActorError

    world.on_score = world.on_start = die
    with pytest.raises(RunStopped, match=r"teachers: .*max_restarts=2"):
        await teachers.score("g1", "p1")


async def test_an_engine_that_never_starts_is_the_recipes_fault() -> None:
    world = FakeWorld()

    def refuse(actor: FakeTeacherActor) -> None:
        raise ValueError("no such model")

    world.on_start = refuse
    with pytest.raises(RunStopped, match="teacher-0: the engine does not start: no such model"):
        await world.service()
