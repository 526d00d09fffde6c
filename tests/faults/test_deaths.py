"""One run in which every kind of part is killed, and buckets are damaged, lost and late; real processes, real parts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from funicular.actors.weight_sync import WeightSync
from funicular.actors.weights import PublishedWeights
from funicular.cluster.session import connect, disconnect
from funicular.launch.build import build, demand
from funicular.launch.ledger import Ledger, audit, read_events
from funicular.launch.loop import train
from funicular.launch.prepared import Prepared
from funicular.launch.recipe import load_recipe
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder
from funicular.launch.tasks import load_tasks
from tests.fakes import FakeTracker
from tests.tiny_run import tiny_recipe

DELAY_S = 3.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


Fault = Callable[[int, PublishedWeights | None], Awaitable[PublishedWeights]]


class FakeFaultyLink:
    """The learner, but from the given versions on something happens once, to what is sent or to whom it is sent."""

    def __init__(self, learners: Any) -> None:
        self._learners = learners
        self.faults: dict[int, Fault] = {}
        self.happened: list[int] = []

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        due = min(self.faults, default=version + 1)
        if due > version:
            return await self._learners.pack(version, base)
        self.happened.append(due)
        return await self.faults.pop(due)(version, base)

    async def corrupt_a_byte(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        weights = await self._learners.pack(version, base)
        flipped = np.array(await weights.buckets[0])
        flipped[100] ^= 1
        return replace(weights, buckets=(ray.put(flipped), *weights.buckets[1:]))

    async def drop_a_bucket(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        weights = await self._learners.pack(version, base)
        return replace(weights, buckets=(*weights.buckets[:-1], _lost.remote()))

    def delay_a_bucket_and(self, fault: Callable[[], Awaitable[None]]) -> Fault:
        """The fault comes while generators are paused in the middle of loading."""

        async def delayed(version: int, base: PublishedWeights | None) -> PublishedWeights:
            weights = await self._learners.pack(version, base)
            self._later = asyncio.create_task(_after(DELAY_S / 2, fault))
            return replace(weights, buckets=(*weights.buckets[:-1], _late.remote(weights.buckets[-1])))

        return delayed

    async def kill_the_rank_that_sends(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        rank = self._learners._actors[0]
        pid = await pid_of(rank)
        os.kill(pid, signal.SIGSTOP)  # so that it cannot be done before it dies
        packing = asyncio.create_task(self._learners.pack(version, base))
        await asyncio.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        return await packing


@ray.remote(num_cpus=0)
def _late(bucket: np.ndarray) -> np.ndarray:
    time.sleep(DELAY_S)
    return bucket


@ray.remote(num_cpus=0, max_retries=0)
def _lost() -> np.ndarray:
    raise RuntimeError("this bucket is gone")


async def _after(seconds: float, fault: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(seconds)
    await fault()


async def pid_of(actor: Any) -> int:
    return await actor.__ray_call__.remote(lambda self: os.getpid())


async def kill(actor: Any) -> None:
    os.kill(await pid_of(actor), signal.SIGKILL)


async def kill_engine(actor: Any) -> None:
    """The engine's own process, below the actor."""
    children = psutil.Process(await pid_of(actor)).children(recursive=True)
    engines = [child for child in children if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline())]
    os.kill(engines[0].pid, signal.SIGKILL)


async def after_step(run: Run, step: int, fault: Callable[[], Awaitable[None]]) -> None:
    while run.step < step:
        await asyncio.sleep(0.02)
    await fault()


async def live_run(folder: Path, *overrides: str) -> Run:
    loaded = load_recipe([str(tiny_recipe(folder))], list(overrides))
    config = loaded.config
    run_folder = RunFolder.create(folder / "run")
    session = connect(config.cluster, demand(config))
    prepared = Prepared(
        folder=run_folder,
        recipe_folder=loaded.folder,
        tasks=load_tasks(config.data, config.reward.verifier, config.seed),
        model_folder=Path(config.model.path),
        snapshot=None,
    )
    tracker: Any = FakeTracker()
    return await build(config, prepared, use_gpu=session.use_gpu, tracker=tracker, ledger=Ledger(run_folder.ledger))


async def test_every_kind_of_part_dies_and_the_run_goes_on(tmp_path: Path) -> None:
    try:
        run = await live_run(
            tmp_path, "max_steps=16", "generator.count=2", "evaluation.tasks=0", "max_staleness=1", "checkpoint.every=2"
        )
        link = FakeFaultyLink(run.learners)
        run.weights = WeightSync(link, run.generators, attempts=2)  # type: ignore[arg-type]
        generators: Any = run.generators
        link.faults = {
            2: link.corrupt_a_byte,
            4: link.drop_a_bucket,
            6: link.delay_a_bucket_and(lambda: kill_engine(generators._members[0].actor)),
            8: link.delay_a_bucket_and(lambda: kill(generators._members[1].actor)),
            10: link.kill_the_rank_that_sends,
        }
        faults = [
            after_step(run, 3, lambda: kill(run.scorers._members[0].actor)),  # type: ignore[attr-defined]
            after_step(run, 5, lambda: kill(run.buffer._actor)),  # type: ignore[attr-defined]
        ]
        injected = [asyncio.create_task(fault) for fault in faults]
        assert await asyncio.wait_for(train(run), 900) == "finished"
        await asyncio.gather(*injected)
    finally:
        disconnect()
    died = {death.split(":")[0] for death in run.budget.deaths}
    assert {"scorer-0", "buffer", "generator-0", "generator-1", "learner"} <= died
    ledger = tmp_path / "run" / "ledger.jsonl"
    account = audit(ledger)
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, 17))
    assert max(m["async/staleness_max"] for _, m in run.tracker.lines if "async/staleness_max" in m) <= 1  # type: ignore[attr-defined]
    versions = [event["version"] for event in read_events(ledger) if event["event"] == "published"]
    assert {2, 4, 6, 8} <= set(versions), "what was damaged, lost or held up on the way was committed after all"
    assert link.happened == [2, 4, 6, 8, 10]
    assert versions == sorted(set(versions))
