"""How many calls a second one process makes through Ray to asynchronous actors that answer at once, awaiting each."""

from __future__ import annotations

import asyncio
import time

AT_ONCE = 256
CALLS = 4000
ACTORS = 2


def calls_per_s() -> float:
    """Starts a Ray of its own. Driver and actors share the machine's cores."""
    import ray

    ray.init(address="local", include_dashboard=False, num_cpus=ACTORS, object_store_memory=100 << 20)
    try:
        return asyncio.run(_measure())
    finally:
        ray.shutdown()


async def _measure() -> float:
    import ray

    @ray.remote(num_cpus=0, max_concurrency=1000)
    class Answering:
        async def answer(self, number: int) -> int:
            return number

    actors = [Answering.remote() for _ in range(ACTORS)]
    await asyncio.gather(*(actor.answer.remote(0) for actor in actors))
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await actors[number % ACTORS].answer.remote(number)

    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(CALLS)))
    return CALLS / (time.monotonic() - began)
