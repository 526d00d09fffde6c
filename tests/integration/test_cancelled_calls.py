"""A group that nobody waits for any more ends in the process that was making it: through Ray, without an engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from funicular.actors.generators import Generators
from funicular.actors.types import GenerationRequest
from funicular.actors.weights import Canary, Manifest, PublishedWeights, SyncRecord
from funicular.cluster.supervise import RestartBudget
from tests.builders import make_sync_record
from tests.fakes import fake_tasks

pytestmark = pytest.mark.integration


@ray.remote(num_cpus=0, max_concurrency=8)
class EndlessGenerator:
    """Never comes to an end by itself."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0

    async def start(self) -> None: ...

    async def health(self) -> None: ...

    async def install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        return make_sync_record("generator-0", published.manifest.version)

    @ray.method(num_returns=2)
    async def generate(self, request: GenerationRequest) -> tuple[Any, Any]:
        self.running += 1
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("unreachable")

    async def counts(self) -> tuple[int, int]:
        return self.running, self.cancelled


async def until(actor: Any, wanted: tuple[int, int]) -> None:
    async with asyncio.timeout(60):
        while await actor.counts.remote() != wanted:
            await asyncio.sleep(0.05)


async def test_a_cancelled_group_ends_in_its_generator_and_others_go_on(local_ray: None) -> None:
    generators = Generators(
        lambda name: EndlessGenerator.remote(),
        count=1,
        start_deadline_s=60.0,
        install_deadline_s=60.0,
        budget=RestartBudget(0),
    )
    await generators.start()
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
    manifest = Manifest(version=0, tensors=(), bucket_sizes=(), bucket_hashes=(), columns=1, canary=canary)
    await generators.install(PublishedWeights(manifest=manifest, buckets=()), last_attempt=True)
    requests = [GenerationRequest(group_id=f"g{i}", task=fake_tasks(1)[0], count=2, temperature=1.0) for i in range(2)]
    first, second = (asyncio.create_task(generators.generate(request)) for request in requests)
    actor = generators._members[0].actor
    await until(actor, (2, 0))
    first.cancel()
    await until(actor, (2, 1))
    assert not second.done()
    second.cancel()
    await until(actor, (2, 2))
