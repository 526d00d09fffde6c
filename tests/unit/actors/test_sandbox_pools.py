"""All pools of a run: what they report together, also when one is restarted, silent or refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from funicular.actors import sandbox_pools
from funicular.actors.errors import RunStopped
from funicular.actors.sandbox_pool import PoolReport
from funicular.actors.sandbox_pools import SLOTS_PER_POOL, Nodes, SandboxPools
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.stats import SandboxStats
from funicular.rewards.sandbox.types import Level
from tests.fakes import FakeMethod


class FakePool:
    """Reports what it is told to, or raises it."""

    def __init__(self, node: str, slots: int) -> None:
        self.node = node
        self.hangs = False
        self.says: PoolReport | Exception = PoolReport(
            level=Level.L3,
            why_not_higher="",
            slots=slots,
            stats=SandboxStats(level=Level.L3, slots=slots),
            life="first",
        )
        self.start = self.report = self.now = FakeOptions(FakeMethod(self._answer))

    def did(self, **counters: Any) -> None:
        assert isinstance(self.says, PoolReport)
        self.says = replace(self.says, stats=replace(self.says.stats, **counters))

    async def _answer(self, language: str = "python") -> PoolReport:
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class FakeOptions:
    """`actor.method.options(...)`, which gives the method again."""

    def __init__(self, method: FakeMethod) -> None:
        self._method = method

    def options(self, **options: Any) -> FakeMethod:
        return self._method


def world(**nodes: int) -> tuple[SandboxPools, list[FakePool]]:
    made: list[FakePool] = []

    def make(node: str, slots: int) -> FakePool:
        made.append(FakePool(node, slots))
        return made[-1]

    def restart(pool: FakePool) -> None:
        pool.hangs = False
        assert isinstance(pool.says, PoolReport)
        pool.says = replace(pool.says, life="second")

    return SandboxPools(make, nodes, restart_actor=restart), made


async def test_a_large_node_has_several_pools_that_share_its_slots() -> None:
    pools, made = world(small=4, large=2 * SLOTS_PER_POOL + 5)
    assert [pool.says.slots for pool in made if pool.node == "small"] == [4]
    assert [pool.says.slots for pool in made if pool.node == "large"] == [13, 12, 12]
    assert [node for node, _ in pools.handles] == ["small", "large", "large", "large"]
    sentences = await pools.start()
    assert sentences == ["sandbox L3 on node small, 4 slots", "sandbox L3 on node large, 37 slots"]


async def test_metrics_are_of_the_time_since_the_last_ones_over_all_nodes() -> None:
    pools, (one, two) = world(a=2, b=2)
    one.did(submissions=100, outcomes={"ok": 100})
    await pools.start()
    one.did(submissions=103, outcomes={"ok": 101, "wrong": 2}, jobs=30, cpu_s=3.0, infra_errors=1, queue_wait_s=2.0)
    two.did(submissions=1, outcomes={"ok": 1}, jobs=10, cpu_s=1.0, dropped=1, infra_errors=1)
    metrics = await pools.metrics()
    assert metrics["sandbox/submissions"] == 4
    assert metrics["sandbox/outcome/ok"] == 0.5
    assert metrics["sandbox/outcome/wrong"] == 0.5
    assert metrics["sandbox/cpu_s"] == 0.1
    assert metrics["sandbox/queue_wait_mean_s"] == 0.5
    assert metrics["sandbox/infra_error_frac"] == pytest.approx(2 / 5)
    assert (metrics["sandbox/level"], metrics["sandbox/slots"]) == (3, 4)
    metrics = await pools.metrics()
    assert metrics["sandbox/submissions"] == 0
    assert "sandbox/outcome/ok" not in metrics


async def test_idle_time_is_of_all_slots() -> None:
    pools, (pool,) = world(a=2)
    await pools.start()
    pool.did(slot_seconds=20.0, busy_s=5.0)
    assert (await pools.metrics())["sandbox/idle_frac"] == 0.75


async def test_a_pool_that_was_restarted_counts_from_zero_and_is_counted() -> None:
    pools, (pool,) = world(a=2)
    await pools.start()
    pool.did(submissions=50)
    await pools.metrics()
    assert isinstance(pool.says, PoolReport)
    pool.says = replace(pool.says, life="second", stats=SandboxStats(level=Level.L3, slots=2, submissions=7))
    metrics = await pools.metrics()
    assert (metrics["sandbox/submissions"], metrics["sandbox/pool_restarts"]) == (7, 1)
    assert (await pools.metrics())["sandbox/pool_restarts"] == 1


async def test_the_lowest_level_is_shown() -> None:
    pools, (one, _) = world(a=2, b=2)
    assert isinstance(one.says, PoolReport)
    one.says = replace(one.says, level=Level.L1, why_not_higher="L3: EPERM")
    assert (await pools.start())[0] == "sandbox L1 on node a, 2 slots (not higher: L3: EPERM)"
    assert (await pools.metrics())["sandbox/level"] == 1


async def test_a_silent_pool_does_not_stop_a_run() -> None:
    pools, (one, two) = world(a=2, b=3)
    await pools.start()
    one.says = RayActorError()
    assert (await pools.metrics())["sandbox/slots"] == 3
    two.says = RayActorError()
    assert await pools.metrics() == {}


async def test_a_pool_that_hangs_is_restarted_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_pools, "REPORT_S", 0.05)
    monkeypatch.setattr(sandbox_pools, "SILENT_S", 0.0)
    pools, (pool,) = world(a=2)
    await pools.start()
    for _ in range(2):
        pool.hangs = True
        assert await pools.metrics() == {}
        assert await pools.metrics() == {}
        assert pool.hangs
        pool.hangs = False
        assert (await pools.metrics())["sandbox/pool_restarts"] == 0, "it answered before the third miss"
    pool.hangs = True
    for _ in range(3):
        assert await pools.metrics() == {}
    assert (await pools.metrics())["sandbox/pool_restarts"] == 1


async def test_a_pool_whose_slots_start_slowly_is_let(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_pools, "REPORT_S", 0.05)
    pools, (pool,) = world(a=2)
    await pools.start()
    pool.hangs = True
    for _ in range(4):
        assert await pools.metrics() == {}
    assert pool.hangs


async def test_a_node_that_is_refused_stops_the_start_with_its_reason() -> None:
    pools, (pool,) = world(a=2)
    pool.says = IsolationUnavailable("sandbox.min_level=L3: this node reaches L1")
    with pytest.raises(IsolationUnavailable, match=r"(?s)min_level=L3.*\(node a\)"):
        await pools.start()
    pool.says = ValueError("no g++")
    with pytest.raises(ValueError, match=r"no g\+\+ \(node a\)"):
        await pools.start("cpp")
    pool.says = RayActorError()
    with pytest.raises(RunStopped, match="the sandbox pool of node a does not start"):
        await asyncio.wait_for(pools.start(), 30)


class World:
    """A cluster whose nodes come and go."""

    def __init__(self, **nodes: int) -> None:
        self.slots = dict(nodes)
        self.says: dict[str, PoolReport | Exception] = {}
        self.hanging: set[str] = set()
        self.made: list[FakePool] = []
        self.killed: list[FakePool] = []
        self.sentences: list[str] = []
        self.pools = SandboxPools(
            self.make,
            nodes,
            look=lambda: Nodes(alive=frozenset(self.slots), slots=self.slots),
            say=self.sentences.append,
            kill_actor=self.killed.append,
        )

    def make(self, node: str, slots: int) -> FakePool:
        pool = FakePool(node, slots)
        pool.says = self.says.get(node, pool.says)
        pool.hangs = node in self.hanging
        self.made.append(pool)
        return pool

    async def followed(self) -> list[str]:
        """Nodes of the pools that are asked, after a look and what follows from it."""
        await self.pools.follow()
        await asyncio.gather(*self.pools._joining.values())
        return [node for node, _ in self.pools.handles]


async def test_a_node_that_joins_gets_pools_and_one_that_leaves_loses_them() -> None:
    world = World(a=2)
    await world.pools.start()
    assert (await world.followed(), world.pools.changes) == (["a"], 0)
    world.slots["b"] = SLOTS_PER_POOL + 1
    assert (await world.followed(), world.pools.changes) == (["a", "b", "b"], 1)
    assert world.sentences == ["joined: sandbox L3 on node b, 17 slots"]
    assert (await world.pools.metrics())["sandbox/slots"] == 19
    assert (await world.followed(), len(world.made)) == (["a", "b", "b"], 3)
    del world.slots["a"]
    assert (await world.followed(), world.pools.changes) == (["b", "b"], 2)
    assert [pool.node for pool in world.killed] == ["a"]
    assert (await world.pools.metrics())["sandbox/slots"] == 17


async def test_a_node_that_leaves_while_its_pools_report_does_not_stop_the_run() -> None:
    world = World(a=2, b=3)
    await world.pools.start()
    reporting = asyncio.create_task(world.pools.metrics())
    await asyncio.sleep(0)
    del world.slots["a"]
    await world.pools.follow()
    assert (await reporting)["sandbox/slots"] in (3, 5)
    assert (await world.pools.metrics())["sandbox/slots"] == 3


async def test_pools_of_a_node_that_joins_are_not_asked_before_it_has_proven_its_isolation() -> None:
    world = World(a=2)
    await world.pools.start()
    world.slots["b"] = 2
    world.hanging.add("b")
    await world.pools.follow()
    await asyncio.wait(world.pools._joining.values(), timeout=0.1)
    assert [pool.node for pool in world.made] == ["a", "b"]
    assert ([node for node, _ in world.pools.handles], world.pools.changes) == (["a"], 0)


@pytest.mark.parametrize(
    "refusal", [IsolationUnavailable("sandbox.min_level=L3: this node reaches L1"), ValueError("g++")]
)
async def test_a_node_that_joins_and_proves_nothing_is_never_asked(refusal: ValueError) -> None:
    world = World(a=2)
    await world.pools.start()
    world.slots["b"], world.says["b"] = 2, refusal
    assert await world.followed() == ["a"]
    assert await world.followed() == ["a"]
    assert [pool.node for pool in world.made] == ["a", "b"], "it is not tried again"
    assert [pool.node for pool in world.killed] == ["b"]
    (sentence,) = world.sentences
    assert sentence.startswith(f"node b has joined and gets no sandbox pool: {refusal}")


async def test_a_node_that_joins_and_does_not_start_is_tried_again() -> None:
    world = World(a=2)
    await world.pools.start()
    world.slots["b"], world.says["b"] = 2, RayActorError()
    assert await world.followed() == ["a"]
    assert await world.followed() == ["a"]
    (said,) = world.sentences
    assert said.startswith("node b has joined, and is tried again and again: the sandbox pool of node b does not start")
    del world.says["b"]
    assert await world.followed() == ["a", "b"]


async def test_what_goes_wrong_after_a_look_does_not_end_the_looking() -> None:
    world = World(a=2, b=2)
    await world.pools.start()
    del world.slots["a"]
    world.pools._say = lambda sentence: print(sentence, file=1)  # type: ignore[call-overload]
    await world.pools.follow()
    world.pools._say = world.sentences.append
    assert await world.followed() == ["b"]


async def test_nodes_that_cannot_be_listed_change_nothing() -> None:
    world = World(a=2)
    await world.pools.start()
    world.pools._look = None
    await world.pools.follow()

    def fail() -> Nodes:
        raise ConnectionError

    world.pools._look = fail
    assert await world.followed() == ["a"]


async def test_a_run_waits_for_a_node_when_all_have_left_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a=2)
    await world.pools.start()
    await world.pools.some()
    del world.slots["a"]
    assert await world.followed() == []
    waiting = asyncio.create_task(world.pools.some())
    await asyncio.sleep(0)
    assert not waiting.done()
    world.slots["b"] = 2
    await world.followed()
    await waiting
    del world.slots["b"]
    await world.followed()
    monkeypatch.setattr(sandbox_pools, "NO_POOL_S", 0.01)
    with pytest.raises(RunStopped, match="every node with a sandbox pool has left"):
        await world.pools.some()


async def test_what_pools_do_now_is_summed_over_those_that_answer_and_outcomes_only_grow() -> None:
    pools, (one, two) = world(a=2, b=3)
    await pools.start()
    one.did(busy=1, waiting=4, submissions=2, outcomes={"ok": 2})
    two.did(busy=3, outcomes={"ok": 1})
    assert await now_of(pools) == {
        ("sandbox_pools", "answering"): 2,
        ("sandbox_pools", "silent"): 0,
        ("sandbox_slots", "busy"): 4,
        ("sandbox_slots", "idle"): 1,
        ("sandbox_waiting",): 4,
        ("sandbox_judged", "ok"): 3,
    }
    assert isinstance(one.says, PoolReport)
    one.says = replace(one.says, life="second", stats=SandboxStats(level=Level.L3, slots=2, outcomes={"wrong": 1}))
    two.says = RayActorError()
    now = await now_of(pools)
    assert (now["sandbox_pools", "answering"], now["sandbox_pools", "silent"]) == (1, 1)
    assert (now["sandbox_slots", "busy"], now["sandbox_slots", "idle"]) == (0, 2)
    assert (now["sandbox_judged", "ok"], now["sandbox_judged", "wrong"]) == (3, 1)


async def now_of(pools: SandboxPools) -> dict[tuple[str, ...], float]:
    readings = await pools.now()
    return {(reading.name.removeprefix("now/"), *reading.labels.values()): reading.value for reading in readings}
