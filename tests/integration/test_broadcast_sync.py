"""Real learner ranks broadcast to workers of real engines: what arrives, and what breaks on the way. Two minutes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.exceptions import RayActorError

from funicular.actors.config import AlgorithmConfig, LearnerConfig, WeightSyncConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.learners import LearnerGroup
from funicular.actors.weights import SyncRecord, WeightSyncError
from funicular.rewards.config import RewardConfig
from tests.engines import Engine, start
from tests.fake_weight_sender import Fate, faulty, reached
from tests.integration.test_learners import batch
from tests.tiny import Architecture

pytestmark = pytest.mark.integration

SHORT_S = 16.0
"""Half of it is for the broadcast, half for the object store."""
ALL_COLUMNS = 10_000
SYNC = WeightSyncConfig(transport="broadcast", bucket_mib=1, columns=ALL_COLUMNS, deadline_s=120.0)


class Published:
    """A learner of two ranks, which trains between versions, and an engine that is sent them."""

    def __init__(self, engine: Engine, zero_stage: int) -> None:
        self.engine = engine
        engine.generator._installer._sync = SYNC
        self.learners = LearnerGroup(
            LearnerConfig(ranks=2, zero_stage=zero_stage, learning_rate=1e-2, micro_batch_tokens=60, cpu_threads=1),
            AlgorithmConfig(),
            SYNC,
            wire_dtype="float32",
            temperature=1.0,
            max_completion_tokens=16,
            model_folder=str(engine.folder),
            seed=0,
            use_gpu=False,
            rewards=RewardConfig(),
        )
        self.version = 0

    @property
    def first_rank(self) -> Any:
        return self.learners._actors[0]

    async def next_version(self) -> Any:
        self.version += 1
        await self.learners.step(self.version, batch())
        return await self.learners.pack(self.version)

    async def arm(self, fate: Fate, index: int) -> None:
        await self.first_rank.__ray_call__.remote(faulty(fate, index))

    async def until_reached(self) -> None:
        while not await self.first_rank.__ray_call__.remote(reached):
            await asyncio.sleep(0.02)

    async def install_next(self) -> SyncRecord:
        return await self.engine.install(await self.next_version())


async def published(
    folder: Path, architecture: Architecture, zero_stage: int, *, tied: bool, workers: int
) -> Published:
    engine = await start(folder, architecture, tied=tied, workers=workers)
    both = Published(engine, zero_stage)
    await both.learners.start()
    return both


def assert_all_is_bit_equal_and_was_broadcast(record: SyncRecord, both: Published) -> None:
    assert record.broadcast_bytes == record.fetched_bytes == record.total_bytes
    assert record.columns_checked == 2 * 7 + 1
    assert record.version == both.engine.generator.committed_version == both.version


async def test_one_worker_receives_what_two_ranks_train(local_ray: None, tmp_path: Path) -> None:
    both = await published(tmp_path, "llama", 0, tied=True, workers=1)
    try:
        for _ in range(3):
            assert_all_is_bit_equal_and_was_broadcast(await both.install_next(), both)
        await asyncio.wait_for(both.engine.generate(), 60)

        weights = await both.next_version()
        record = await both.engine.install(weights.in_store_only())
        assert (record.broadcast_bytes, record.columns_checked) == (0, 2 * 7 + 1)
    finally:
        both.learners.shutdown()
        await both.engine.generator.stop()


async def test_two_workers_and_everything_that_breaks_on_the_way(local_ray: None, tmp_path: Path) -> None:
    both = await published(tmp_path, "qwen2", 3, tied=False, workers=2)
    generator = both.engine.generator
    try:
        for _ in range(2):
            assert_all_is_bit_equal_and_was_broadcast(await both.install_next(), both)

        weights = await both.next_version()
        assert len(weights.buckets) > 1
        await both.arm("damaged", 1)
        with pytest.raises(WeightSyncError, match="bucket 1: worker 0 sees bytes that hash to") as refused:
            await both.engine.install(weights)
        assert refused.value.stage == "bucket"
        assert (await generator.health())["state"] == "unverified"
        asked = asyncio.create_task(both.engine.generate())
        await asyncio.sleep(0.5)
        assert not asked.done(), "nothing is generated until the version is sent again"
        record = await both.engine.install((await both.learners.pack(both.version)).in_store_only())
        assert (record.broadcast_bytes, record.columns_checked) == (0, 2 * 7 + 1)
        assert (await asked)[0].newest_version == both.version
        assert_all_is_bit_equal_and_was_broadcast(await both.install_next(), both)

        weights = await both.next_version()
        await both.arm("hangs", 1)
        generator._installer._sync = replace(SYNC, deadline_s=SHORT_S)
        record = await both.engine.install(weights)
        generator._installer._sync = SYNC
        assert (record.broadcast_bytes, record.columns_checked) == (0, 2 * 7 + 1), "by the object store, in time"
        assert record.broadcast_broken.startswith("worker ")
        assert_all_is_bit_equal_and_was_broadcast(await both.install_next(), both)

        weights = await both.next_version()
        await both.arm("dies", 1)
        record = await both.engine.install(weights)
        assert (record.broadcast_bytes, record.columns_checked) == (0, 2 * 7 + 1), "the store outlives the learner"
        with pytest.raises(RayActorError):
            await both.until_reached()
        record = await both.engine.install(weights)
        assert record.broadcast_bytes == 0, "a dead learner is not waited for"
        both.learners._config = replace(both.learners._config, zero_stage=0)
        await both.learners.restart()
        assert_all_is_bit_equal_and_was_broadcast(await both.install_next(), both)

        weights = await both.next_version()
        await both.arm("hangs", 1)
        installing = asyncio.create_task(both.engine.install(weights))
        await both.until_reached()
        engine_workers()[1].kill()
        with pytest.raises((GroupFailed, WeightSyncError)):
            await installing
        with pytest.raises(GroupFailed, match="engine_died"):
            await asyncio.wait_for(until_not_healthy(generator), 60)
        await both.next_version()  # the learner goes on
    finally:
        both.learners.shutdown()
        await generator.stop()


async def until_not_healthy(generator: Any) -> None:
    while True:
        await generator.health()
        await asyncio.sleep(0.1)


def engine_workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "Worker_TP" in " ".join(p.cmdline())]
