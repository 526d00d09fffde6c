"""Who has the GPUs' memory when, with the real services around actors and ranks that only take notes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from funicular.actors.errors import GroupFailed, LearnerLost
from funicular.actors.generators import Generators
from funicular.actors.gpu_turns import GeneratorsInTurn, LearnersInTurn, take_turns
from funicular.actors.serving_stats import ServingStats
from funicular.actors.types import GenerationRequest
from funicular.actors.weight_sync import WeightSync
from funicular.actors.weights import Canary, Manifest, PublishedWeights, SyncRecord
from funicular.cluster.supervise import RestartBudget
from funicular.rewards.types import Task
from tests.builders import make_sync_record
from tests.fakes import FakeMethod

LEARNER, ENGINE = "learner", "engine"


def weights(version: int) -> PublishedWeights:
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
    manifest = Manifest(version=version, tensors=(), bucket_sizes=(), bucket_hashes=(), columns=0, canary=canary)
    return PublishedWeights(manifest=manifest, buckets=())


class Gpu:
    """One GPU, on which memory of both kinds never is at the same time, and the notes of all that happens."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.holders: set[Any] = set()

    def enter(self, holder: Any, kind: str) -> None:
        self.holders.add((holder, kind))
        assert len({kind for _, kind in self.holders}) == 1, f"{holder} comes, and {self.holders} are there"

    def leave(self, holder: Any, kind: str) -> None:
        self.holders.discard((holder, kind))

    def of(self, kind: str) -> bool:
        return any(held == kind for _, held in self.holders)


class FakeEngineActor:
    """Looks like the Ray actor of a generator."""

    def __init__(self, name: str, gpu: Gpu) -> None:
        self.name = name
        self.gpu = gpu
        self.dead = False
        self.version: int | None = None
        self.busy = asyncio.Event()
        self.busy.set()
        self.starting = asyncio.Event()
        self.starting.set()

    def __getattr__(self, method: str) -> Any:
        function = object.__getattribute__(self, f"do_{method}")

        async def called(*arguments: Any) -> Any:
            if self.dead:
                raise RayActorError
            return await function(*arguments)

        if method == "generate":
            return FakeGenerate(called)
        return FakeMethod(called)

    async def do_start(self) -> None:
        await self.starting.wait()
        self.gpu.enter(self, ENGINE)
        self.gpu.notes.append(f"{self.name} starts")

    async def do_sleep(self) -> None:
        self.gpu.leave(self, ENGINE)
        self.version = None
        self.gpu.notes.append(f"{self.name} sleeps")

    async def do_wake(self) -> None:
        self.gpu.enter(self, ENGINE)
        self.gpu.notes.append(f"{self.name} wakes")

    async def do_install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        assert (self, ENGINE) in self.gpu.holders
        self.version = published.manifest.version
        self.gpu.notes.append(f"{self.name} installs {self.version}")
        return make_sync_record(self.name, self.version)

    async def do_generate(self, request: GenerationRequest) -> str:
        assert (self, ENGINE) in self.gpu.holders
        assert self.version is not None
        self.gpu.notes.append(f"{request.group_id} begins")
        await self.busy.wait()
        if self.dead:
            raise RayActorError
        return request.group_id

    async def do_serving_stats(self) -> ServingStats:
        return ServingStats()

    async def do_abort_all(self, reason: str) -> None:
        self.busy.set()


class FakeGenerate:
    def __init__(self, called: Callable[..., Awaitable[Any]]) -> None:
        self._called = called

    def remote(self, request: GenerationRequest) -> tuple[asyncio.Task[Any], str]:
        return asyncio.ensure_future(self._called(request)), "payload"


class FakeLearners:
    """All ranks."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.gpus: tuple[str | None, ...] = ("0",)
        self.lost_at = ""
        self.training = asyncio.Event()
        self.training.set()

    async def _do(self, what: str) -> None:
        if what == self.lost_at:
            self.lost_at = ""
            self.gpu.leave(self, LEARNER)  # it is dead
            raise LearnerLost(what)
        self.gpu.notes.append(what)

    async def leave_gpus(self) -> None:
        await self._do("leave")
        self.gpu.leave(self, LEARNER)

    async def return_to_gpus(self) -> None:
        await self._do("return")
        self.gpu.enter(self, LEARNER)

    async def step(self, step: int, groups: Any) -> None:
        assert self.gpu.of(LEARNER)
        await self._do("step")
        await self.training.wait()

    async def pack(self, version: int, base: Any) -> PublishedWeights:
        assert self.gpu.of(LEARNER)
        await self._do("pack")
        return weights(version)

    async def save(self, folder: str) -> None:
        assert self.gpu.of(LEARNER)
        await self._do("save")

    async def restart(self) -> None:
        self.gpu.leave(self, LEARNER)
        self.gpu.enter(self, LEARNER)
        await self._do("restart")


class World:
    def __init__(self, count: int = 1) -> None:
        self.gpu = Gpu()
        self.made: list[FakeEngineActor] = []
        self.ranks: Any = FakeLearners(self.gpu)
        self.budget = RestartBudget(10)
        self.service = Generators(
            self._make,
            count=count,
            start_deadline_s=2.0,
            install_deadline_s=2.0,
            budget=self.budget,
            kill_actor=self.kill,
            cancel_call=lambda ref: ref.cancel(),
        )

    def _make(self, name: str) -> FakeEngineActor:
        self.made.append(FakeEngineActor(name, self.gpu))
        return self.made[-1]

    def kill(self, actor: FakeEngineActor) -> None:
        actor.dead = True
        actor.busy.set()
        self.gpu.leave(actor, ENGINE)

    async def begin(self) -> tuple[LearnersInTurn, GeneratorsInTurn, WeightSync]:
        await self.service.start()
        learners, generators = take_turns(self.ranks, self.service, workers=1)
        sync = WeightSync(learners, generators, attempts=2)
        await sync.publish(0)
        self.gpu.notes.clear()
        return learners, generators, sync


def group(name: str) -> GenerationRequest:
    task = Task(task_id=name, prompt="p", answer=None, verifier="none")
    return GenerationRequest(group_id=name, task=task, count=1, temperature=1.0)


async def settle() -> None:
    await asyncio.sleep(0.02)


async def test_a_step_hands_over_twice_and_what_follows_in_the_same_turn_not_at_all() -> None:
    world = World()
    learners, generators, sync = await world.begin()
    await asyncio.gather(generators.generate(group("a")), generators.generate(group("b")))
    await learners.step(1, [])
    await sync.publish(1)
    await generators.generate(group("c"))
    assert world.gpu.notes == [
        "a begins",
        "b begins",
        "generator-0 sleeps",
        "return",
        "step",
        "pack",
        "leave",
        "generator-0 wakes",
        "generator-0 installs 1",
        "c begins",
    ]
    assert (await generators.metrics())["time/gpu_turns_s"] > 0


async def test_a_snapshot_waits_for_groups_under_way_and_those_that_follow_have_the_newest_weights_again() -> None:
    world = World()
    learners, generators, _ = await world.begin()
    world.made[0].busy.clear()
    first = asyncio.create_task(generators.generate(group("a")))
    await settle()
    saving = asyncio.create_task(learners.save("folder"))
    await settle()
    second = asyncio.create_task(generators.generate(group("b")))  # it is still their turn
    await settle()
    assert world.gpu.notes == ["a begins", "b begins"]
    world.made[0].busy.set()
    await asyncio.gather(first, second, saving)
    await generators.generate(group("c"))
    assert world.gpu.notes[2:] == [
        "generator-0 sleeps",
        "return",
        "save",
        "leave",
        "generator-0 wakes",
        "generator-0 installs 0",
        "c begins",
    ]


async def test_a_group_that_comes_in_the_learners_turn_waits_for_its_end() -> None:
    world = World()
    learners, generators, _ = await world.begin()
    world.ranks.training.clear()
    stepping = asyncio.create_task(learners.step(1, []))
    await settle()
    groups = [asyncio.create_task(generators.generate(group(name))) for name in "ab"]
    await settle()
    assert world.gpu.notes == ["generator-0 sleeps", "return", "step"]
    world.ranks.training.set()
    await asyncio.gather(stepping, *groups)
    assert world.gpu.notes[3:] == ["leave", "generator-0 wakes", "generator-0 installs 0", "a begins", "b begins"]


async def test_a_generator_that_dies_asleep_is_rebuilt_in_its_turn_and_joins() -> None:
    world = World(2)
    learners, generators, sync = await world.begin()
    await learners.step(1, [])
    world.kill(world.made[0])
    await sync.publish(1)
    await settle()
    assert [actor.name for actor in world.made] == ["generator-0", "generator-1", "generator-0"]
    of_the_dead = [note for note in world.gpu.notes if note.startswith("generator-0")]
    assert of_the_dead == ["generator-0 sleeps", "generator-0 starts", "generator-0 installs 1"]
    assert world.gpu.notes.index("leave") < world.gpu.notes.index("generator-0 starts")
    assert world.service.serving == 2
    assert await generators.until_serving()


async def test_the_learner_waits_for_an_engine_that_starts() -> None:
    world = World(2)
    learners, generators, _ = await world.begin()
    world.kill(world.made[0])
    made = world._make

    def make(name: str) -> FakeEngineActor:
        actor = made(name)
        actor.starting.clear()
        return actor

    world.service._make_actor = make
    for actor in world.made:
        actor.busy.clear()
    with pytest.raises(GroupFailed, match="generator_died"):
        await generators.generate(group("a"))
    stepping = asyncio.create_task(learners.step(1, []))
    await settle()
    assert "step" not in world.gpu.notes
    world.made[-1].starting.set()
    await stepping
    assert world.gpu.notes[-6:] == [
        "generator-0 starts",
        "generator-0 installs 0",
        *sorted(world.gpu.notes[-4:-2]),
        "return",
        "step",
    ]
    assert sorted(world.gpu.notes[-4:-2]) == ["generator-0 sleeps", "generator-1 sleeps"]


@pytest.mark.parametrize("call", ["leave", "return", "step", "pack"])
async def test_a_lost_learner_is_replaced_whosever_turn_it_was(call: str) -> None:
    world = World()
    learners, generators, sync = await world.begin()
    world.ranks.lost_at = call

    async def steps() -> None:
        for version in (1, 2):
            await learners.step(version, [])
            await sync.publish(version)

    with pytest.raises(LearnerLost):
        await steps()
    await generators.abort_all("rolled_back")
    await learners.restart()
    await sync.publish(3)
    await generators.generate(group("a"))
    assert world.gpu.notes[-5:] == ["pack", "leave", "generator-0 wakes", "generator-0 installs 3", "a begins"]
    assert len(world.made) == 1


async def test_ranks_that_come_back_on_other_gpus_have_their_engines_made_anew_there() -> None:
    world = World()
    learners, generators, sync = await world.begin()

    async def restart_elsewhere() -> None:
        world.ranks.gpus = ("3",)

    world.ranks.restart = restart_elsewhere
    world.gpu.holders.clear()
    await learners.restart()
    world.gpu.enter(world.ranks, LEARNER)
    await sync.publish(1)
    await generators.generate(group("a"))
    assert len(world.made) == 2
    assert world.budget.deaths == ["generator-0: its learner ranks came back on other GPUs"]


async def test_ranks_of_one_engine_that_changed_their_gpus_with_each_other_leave_it_alone() -> None:
    world = World()
    learners, _, sync = await world.begin()
    learners._workers = 2
    world.ranks.gpus = ("0", "1")

    async def restart_in_another_order() -> None:
        world.ranks.gpus = ("1", "0")

    world.ranks.restart = restart_in_another_order
    world.gpu.holders.clear()
    await learners.restart()
    world.gpu.enter(world.ranks, LEARNER)
    await sync.publish(1)
    assert (len(world.made), world.budget.deaths) == (1, [])


async def test_a_handover_that_was_cut_off_is_made_again_whole() -> None:
    world = World()
    learners, generators, _ = await world.begin()
    await learners.step(1, [])
    slow = asyncio.Event()
    wake = FakeEngineActor.do_wake

    async def slow_wake(self: FakeEngineActor) -> None:
        await slow.wait()
        await wake(self)

    FakeEngineActor.do_wake = slow_wake  # type: ignore[method-assign]
    try:
        cut = asyncio.create_task(generators.generate(group("a")))
        await settle()
        cut.cancel()
        await settle()
        slow.set()
        await settle()
    finally:
        FakeEngineActor.do_wake = wake  # type: ignore[method-assign]
    world.gpu.holders.clear()
    await learners.save("folder")
    assert world.gpu.notes[-3:] == ["generator-0 sleeps", "return", "save"]


async def test_an_engine_that_cannot_sleep_or_wake_is_rebuilt() -> None:
    world = World(2)
    learners, _, sync = await world.begin()
    broken = world.made[0]

    async def fails() -> None:
        raise GroupFailed("engine_died", "no memory")

    broken.do_sleep = fails  # type: ignore[method-assign]
    await learners.step(1, [])
    assert broken.dead
    await sync.publish(1)
    world.made[1].do_wake = fails  # type: ignore[method-assign]
    await learners.step(2, [])
    await sync.publish(2)
    await settle()
    assert [actor.version for actor in world.made if not actor.dead] == [2, 2]
    assert len(world.budget.deaths) == 2
