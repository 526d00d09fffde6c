"""Learner ranks and generators on the same GPUs (`cluster.colocate`): one of the two has their memory at a time.

    generate ─► generators sleep, ranks return ─► step, pack ─► ranks leave, generators wake ─► install ─► generate

Nobody orders the turns: the loop, weight sync and checkpoints call the parts as ever. The first call that needs the
GPUs has them handed over, when those that have them are done. A generator forgets its weights in its sleep; one that is
woken to generate, and not for an install, takes those that were published last, like one that joins late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from funicular.actors.generators import Generators
from funicular.actors.learners import LearnerGroup
from funicular.actors.model_shape import ModelShape
from funicular.actors.readings import Reading
from funicular.actors.types import GenerationRecord, GenerationRequest, ScoredGroup, StepResult
from funicular.actors.weights import PublishedWeights, SyncRecord


class Side(StrEnum):
    """Who takes turns."""

    LEARNERS = "learners"
    GENERATORS = "generators"


class GpuTurns:
    """Whose turn it is.

    Args:
        leave: how each side gives the memory up; may be asked of one that has done so.
        first: has it now.
    """

    def __init__(self, leave: dict[Side, Callable[[], Awaitable[None]]], first: Side) -> None:
        self._leave = leave
        self._side: Side | None = first  # None: a handover was not completed, and some of both may be there
        self._handing_over = asyncio.Lock()
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._begun = {side: asyncio.Event() for side in Side}
        self._begun[first].set()
        self._seconds = 0.0

    @asynccontextmanager
    async def take(self, side: Side, come: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Have the GPUs, and keep them meanwhile. Whose turn it is need not wait for those who wait for theirs.

        Args:
            come: how this side takes the memory, if it does not have it; may be asked again after it failed.
        """
        if self._side is not side:
            async with self._handing_over:
                while self._side is not side and self._users:
                    await self._unused.wait()
                if self._side is not side:
                    await self._hand_over(side, come)
        with self._used():
            yield

    @asynccontextmanager
    async def wait_for(self, side: Side) -> AsyncIterator[None]:
        """The same without asking for a turn: waits until somebody else has asked."""
        while self._side is not side:
            await self._begun[side].wait()
        with self._used():
            yield

    def forget(self) -> None:
        """What has the GPUs' memory is not known: the next that takes them has them handed over."""
        self._end_turn()

    def metrics(self) -> dict[str, float]:
        """Seconds of handing over since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return {"time/gpu_turns_s": seconds}

    async def _hand_over(self, side: Side, come: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        self._end_turn()
        for other, leave in self._leave.items():
            if other is not side:
                await leave()
        await come()
        self._side = side
        self._begun[side].set()
        self._seconds += time.monotonic() - began

    def _end_turn(self) -> None:
        self._side = None
        for begun in self._begun.values():
            begun.clear()

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()


class LearnersInTurn:
    """The learner's ranks, as the loop and weight sync call them; each call waits for their turn."""

    def __init__(self, turns: GpuTurns, learners: LearnerGroup, generators: Generators, workers: int) -> None:
        """Args:
        workers: of one engine, which has the GPUs of as many ranks.
        """
        self._turns = turns
        self._learners = learners
        self._generators = generators
        self._workers = workers

    async def step(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        async with self._turn():
            return await self._learners.step(step, groups)

    async def pack(self, version: int, base: PublishedWeights | None = None) -> PublishedWeights:
        async with self._turn():
            return await self._learners.pack(version, base)

    async def save(self, folder: str) -> None:
        async with self._turn():
            await self._learners.save(folder)

    async def load(self, folder: str) -> None:
        async with self._turn():
            await self._learners.load(folder)

    async def export(self, folder: str) -> None:
        async with self._turn():
            await self._learners.export(folder)

    async def restart(self) -> None:
        """Fresh ranks take the turn. Engines whose GPUs are not the ranks' any more are made anew."""
        before = self._gpus_of_engines()
        self._turns.forget()
        async with self._turns.take(Side.LEARNERS, self._learners.restart):
            if self._gpus_of_engines() != before:
                self._generators.rebuild_all("its learner ranks came back on other GPUs")

    async def check_folder(self, folder: Path) -> None:
        await self._learners.check_folder(folder)  # which needs no GPU

    @property
    def model_shape(self) -> ModelShape | None:
        return self._learners.model_shape

    def _gpus_of_engines(self) -> list[set[str | None]]:
        """Without their order: two ranks of a place may have changed theirs, and the engine has both."""
        gpus = self._learners.gpus
        return [set(gpus[first : first + self._workers]) for first in range(0, len(gpus), self._workers)]

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return self._turns.take(Side.LEARNERS, self._learners.return_to_gpus)


class GeneratorsInTurn:
    """The generators, as the loop and weight sync call them; each call waits for their turn."""

    def __init__(self, turns: GpuTurns, generators: Generators) -> None:
        self._turns = turns
        self._generators = generators
        generators.gpus = lambda: turns.wait_for(Side.GENERATORS)

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        async with self._turns.take(Side.GENERATORS, self._generators.wake_and_serve):
            return await self._generators.generate(request)

    async def install(self, weights: PublishedWeights, *, last_attempt: bool) -> list[SyncRecord]:
        async with self._turns.take(Side.GENERATORS, self._generators.wake):
            return await self._generators.install(weights, last_attempt=last_attempt)

    @property
    def behind(self) -> bool:
        return self._generators.behind

    async def until_serving(self) -> bool:
        return await self._generators.until_serving()

    async def abort_all(self, reason: str) -> None:
        await self._generators.abort_all(reason)

    async def metrics(self) -> dict[str, float]:
        return await self._generators.metrics() | self._turns.metrics()

    async def now(self) -> list[Reading]:
        return await self._generators.now()


def take_turns(
    learners: LearnerGroup, generators: Generators, *, workers: int
) -> tuple[LearnersInTurn, GeneratorsInTurn]:
    """The two parts, sharing their GPUs from now on; the generators have them now, and the ranks have left.

    Args:
        workers: of one engine.
    """
    turns = GpuTurns({Side.LEARNERS: learners.leave_gpus, Side.GENERATORS: generators.sleep}, Side.GENERATORS)
    return LearnersInTurn(turns, learners, generators, workers), GeneratorsInTurn(turns, generators)
