"""Generators as one service: what happens to a version, and to a generator, when things go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from funicular.actors.errors import GroupFailed, RunStopped
from funicular.actors.generators import Generators
from funicular.actors.serving_stats import ServingStats
from funicular.actors.types import GenerationRequest
from funicular.actors.weight_sync import WeightSync
from funicular.actors.weights import Canary, Manifest, PublishedWeights, SyncRecord, WeightSyncError
from funicular.cluster.supervise import RestartBudget
from tests.builders import make_sync_record
from tests.fakes import FakeMethod, fake_tasks


def weights(version: int) -> PublishedWeights:
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
    manifest = Manifest(version=version, tensors=(), bucket_sizes=(), bucket_hashes=(), columns=1, canary=canary)
    return PublishedWeights(manifest=manifest, buckets=())


class FakeEngineActor:
    """A generator's actor that does as it is told. `refuse` and `die` are asked before each install."""

    def __init__(self, name: str, world: FakeWorld) -> None:
        self.name = name
        self.world = world
        self.version: int | None = None
        self.dead = False
        self.generate_started = asyncio.Event()

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self, f"do_{name}"))

    async def do_start(self) -> None:
        await asyncio.sleep(0)

    async def do_health(self) -> None:
        return None

    async def do_serving_stats(self) -> ServingStats:
        return ServingStats()

    async def do_install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        version = published.manifest.version
        await asyncio.sleep(0.001)
        self.world.senders.append((version, published.sender))
        self.world.on_install(self, version, attempt)
        self.version = version
        self.world.installed.append((self.name, version))
        return make_sync_record(self.name, version)


class FakeWorld:
    """Makes and kills actors, and decides what goes wrong."""

    def __init__(self) -> None:
        self.made: list[FakeEngineActor] = []
        self.killed: list[FakeEngineActor] = []
        self.installed: list[tuple[str, int]] = []
        self.on_install: Callable[[FakeEngineActor, int, int], None] = lambda actor, version, attempt: None
        self.packed: list[int] = []
        self.bases: list[int | None] = []
        self.senders: list[tuple[int, str | None]] = []
        """Version and sender that each install was given."""

    def make(self, name: str) -> FakeEngineActor:
        self.made.append(FakeEngineActor(name, self))
        return self.made[-1]

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        self.packed.append(version)
        self.bases.append(base.manifest.version if base else None)
        return replace(weights(version), sender=f"rank 0, {len(self.packed)}")

    def service(self, count: int, limit: int = 3) -> Generators:
        return Generators(
            self.make,
            count=count,
            start_deadline_s=1.0,
            install_deadline_s=0.5,
            budget=RestartBudget(limit),
            kill_actor=self.killed.append,
        )


async def published(world: FakeWorld, count: int, limit: int = 3) -> tuple[Generators, WeightSync]:
    generators = world.service(count, limit)
    await generators.start()
    sync = WeightSync(world, generators, attempts=2)
    await sync.publish(0)
    return generators, sync


async def settle() -> None:
    await asyncio.sleep(0.05)


async def test_a_version_reaches_every_generator() -> None:
    world = FakeWorld()
    _, sync = await published(world, 3)
    report = await sync.publish(1)
    assert sorted(record.generator for record in report.records) == ["generator-0", "generator-1", "generator-2"]
    assert sync.version == 1


async def test_a_refused_version_is_packed_and_sent_again_to_the_one_that_refused() -> None:
    world = FakeWorld()
    _, sync = await published(world, 2)
    refusals = []

    def refuse_once(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if actor.name == "generator-1" and not refusals:
            refusals.append(version)
            raise WeightSyncError("bucket", "hash")

    world.on_install = refuse_once
    await sync.publish(1)
    assert world.packed == [0, 1, 1]
    assert world.installed[2:] == [("generator-0", 1), ("generator-1", 1)]
    assert world.killed == []


async def test_a_version_is_broadcast_once_and_to_those_only_that_serve_when_it_is_published() -> None:
    world = FakeWorld()
    _, sync = await published(world, 1)
    del world.senders[:]

    def refuse_twice(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if len(world.senders) <= 2:
            raise WeightSyncError("bucket", "hash")

    world.on_install = refuse_twice
    await sync.publish(1)
    assert world.senders == [(1, "rank 0, 2"), (1, None), (1, None)], "sent, sent again, and to the rebuilt one"


async def test_deltas_are_to_what_was_packed_last_and_what_is_sent_again_is_sent_whole() -> None:
    world = FakeWorld()
    generators = world.service(1)
    await generators.start()
    sync = WeightSync(world, generators, attempts=2, builds_on=True)
    refusals = []

    def refuse_once(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if version == 2 and not refusals:
            refusals.append(version)
            raise WeightSyncError("bucket", "hash")

    world.on_install = refuse_once
    for version in range(4):
        await sync.publish(version)
    assert world.packed == [0, 1, 2, 2, 3]
    assert world.bases == [None, 0, 1, None, 2]


async def test_one_that_keeps_refusing_is_rebuilt_while_the_others_serve() -> None:
    world = FakeWorld()
    generators, sync = await published(world, 2)
    broken = world.made[1]

    def refuse(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if actor is broken:
            raise WeightSyncError("verify", "lm_head")

    world.on_install = refuse
    await sync.publish(1)
    await settle()
    assert world.killed == [broken]
    assert world.installed[-1] == ("generator-1", 1)
    assert (await generators.metrics())["generators/serving"] == 2


async def test_one_whose_engine_died_is_rebuilt_and_the_version_is_not_sent_twice() -> None:
    world = FakeWorld()
    generators, sync = await published(world, 2)
    broken = world.made[1]

    def die(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if actor is broken:
            raise GroupFailed("engine_died", "generator-1: weight sync failed at load: EngineDeadError")

    world.on_install = die
    await sync.publish(1)
    await settle()
    assert world.packed == [0, 1]
    assert world.killed == [broken]
    assert world.installed[-1] == ("generator-1", 1)
    assert (await generators.metrics())["generators/serving"] == 2


async def test_a_rebuilt_one_joins_with_a_version_published_meanwhile() -> None:
    world = FakeWorld()
    _, sync = await published(world, 2)
    doomed = world.made[1]

    def die(actor: FakeEngineActor, version: int, attempt: int) -> None:
        if actor is doomed:
            raise RayActorError

    world.on_install = die
    await sync.publish(1)
    await sync.publish(2)
    await settle()
    assert ("generator-1", 2) in world.installed


async def test_a_hung_install_is_cut_off_at_its_deadline() -> None:
    world = FakeWorld()
    generators, sync = await published(world, 1)
    hung = world.made[0]
    original = hung.do_install

    async def hang(published: PublishedWeights, attempt: int) -> Any:
        await asyncio.sleep(60)

    hung.do_install = hang  # type: ignore[method-assign]
    assert original
    await sync.publish(1)
    assert world.killed == [hung]
    assert world.installed[-1] == ("generator-0", 1)
    await generators.until_serving()


async def test_the_run_stops_when_no_generator_can_be_brought_back() -> None:
    world = FakeWorld()
    _, sync = await published(world, 1, limit=2)

    def refuse(actor: FakeEngineActor, version: int, attempt: int) -> None:
        raise WeightSyncError("canary", "2.2 nat")

    world.on_install = refuse
    with pytest.raises(RunStopped, match=r"max_restarts=2"):
        await sync.publish(1)


async def test_a_group_of_a_dead_generator_fails_and_the_generator_is_rebuilt() -> None:
    world = FakeWorld()
    generators, _ = await published(world, 1)
    dead = world.made[0]

    class FakeDeadMethod:
        def remote(self, request: GenerationRequest) -> tuple[Any, Any]:
            async def die() -> None:
                raise RayActorError

            return asyncio.ensure_future(die()), "payload"

    dead.__dict__["generate"] = FakeDeadMethod()
    request = GenerationRequest(group_id="g1", task=fake_tasks(1)[0], count=2, temperature=1.0)
    with pytest.raises(GroupFailed, match="generator_died"):
        await generators.generate(request)
    await settle()
    assert world.killed == [dead]
    assert world.installed[-1] == ("generator-0", 0)


async def test_a_call_that_nobody_waits_for_any_more_is_cancelled_where_it_runs() -> None:
    world = FakeWorld()
    generators, _ = await published(world, 1)
    actor, cancelled = world.made[0], []
    generators._cancel_call = cancelled.append
    running = asyncio.Event()

    async def forever(request: GenerationRequest) -> None:
        running.set()
        await asyncio.Event().wait()

    call = FakeMethod(forever).remote
    actor.__dict__["generate"] = SimpleNamespace(remote=lambda request: (call(request), "payload"))
    request = GenerationRequest(group_id="g1", task=fake_tasks(1)[0], count=2, temperature=1.0)
    group = asyncio.create_task(generators.generate(request))
    await running.wait()
    group.cancel()
    with pytest.raises(asyncio.CancelledError):
        await group
    assert len(cancelled) == 1
    assert generators._members[0].in_flight == 0


async def test_statistics_of_the_generators_that_answer_are_enough() -> None:
    world = FakeWorld()
    generators, _ = await published(world, 2)

    async def dead() -> None:
        raise RayActorError

    async def alive() -> ServingStats:
        return ServingStats(seconds=2.0, iterations=1, tokens=10)

    for actor, answer in zip(world.made, (dead, alive), strict=True):
        actor.__dict__["serving_stats"] = FakeMethod(answer)
    metrics = await generators.metrics()
    assert metrics["serving/tokens_per_s"] == 5.0
    assert metrics["generators/serving"] == 2.0


async def test_what_generators_do_now_is_counted_by_state() -> None:
    world = FakeWorld()
    generators, _ = await published(world, count=2)
    gate = asyncio.Event()
    first, second = world.made

    async def held(published: PublishedWeights, attempt: int) -> SyncRecord:
        await gate.wait()
        return make_sync_record(first.name, 1)

    first.do_install = held  # type: ignore[method-assign]
    generators._members[1].in_flight = 3
    installing = asyncio.create_task(generators.install(weights(1), last_attempt=False))
    while generators._members[1].version != 1:
        await asyncio.sleep(0)
    now = {(reading.name, *reading.labels.values()): reading.value for reading in await generators.now()}
    assert now == {
        ("now/engines", "generator", "starting"): 0,
        ("now/engines", "generator", "waiting"): 0,
        ("now/engines", "generator", "installing"): 1,
        ("now/engines", "generator", "serving"): 1,
        ("now/groups", "generator-0"): 0,
        ("now/groups", "generator-1"): 3,
        ("now/version", "generator-0"): 0,
        ("now/version", "generator-1"): 1,
    }
    gate.set()
    await installing
    assert {reading.value for reading in await generators.now() if "installing" in reading.labels.values()} == {0}
    generators._distrust(generators._members[0], first, "dead")
    states = {reading.labels["state"]: reading.value for reading in await generators.now() if "state" in reading.labels}
    assert (states["starting"], states["serving"]) == (1, 1)
    assert second is world.made[1]
