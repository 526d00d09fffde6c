"""What happens to weights on their way in a real run: damage, loss, and deaths at each state of their transaction."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray.exceptions import RayActorError

from funicular.actors.engine_members import Member
from funicular.actors.errors import GroupFailed, LearnerLost
from funicular.actors.generators import Generators
from funicular.actors.types import GenerationRecord, GenerationRequest
from funicular.actors.weight_sync import PublishReport, WeightSync
from funicular.actors.weights import PublishedWeights, SyncRecord
from funicular.rewards.types import Task
from tests.fake_weight_sender import Fate, faulty
from tests.held_install import HeldInstall

CALLS = {"loading": "load", "verifying": "in_use", "deciding": "resume_with"}
"""The call of `EngineLink` that each state waits for."""
_CANARY = "canary_logprobs"
"""A later call of `deciding`: the engine runs by then."""
_PATIENCE_S = 300.0
_ORPHANS_S = 15.0

Fault = Callable[[int, PublishedWeights | None], Awaitable[PublishedWeights]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One fault."""

    what: str
    version: int
    moment: float
    """When weights had been packed, or could not be, by time.monotonic(); what dies later dies in a second."""


class FakeFaultyLink:
    """The learner, but one fault after the other happens to what is sent or to whom it is sent, one for each version.

    Before each fault it waits until generators serve; so the next publish has somebody to go on with.
    """

    def __init__(self, learners: Any, generators: Generators) -> None:
        self._learners = learners
        self._generators = generators
        self._faulted = 0
        self.faults: list[tuple[str, Fault]] = []
        self.deaths: list[Death] = []
        self.sent: dict[int, dict[str, torch.Tensor]] = {}
        """Version to tensors, as the learner packed them."""
        self.checks: list[asyncio.Task[None]] = []
        """What follows a fault; they raise what was not as promised."""

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        if version <= self._faulted or not self.faults:
            return await self._pack(version, base)
        self._faulted = version
        what, fault = self.faults.pop(0)
        try:
            return await fault(version, base)
        finally:
            self.deaths.append(Death(what=what, version=version, moment=time.monotonic()))

    async def _pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        weights = await self._learners.pack(version, base)
        buckets = [torch.from_numpy(np.array(await bucket)) for bucket in weights.buckets]
        self.sent[version] = {
            entry.name: buckets[entry.bucket][entry.offset : entry.offset + entry.nbytes]
            .view(getattr(torch, entry.dtype))
            .view(entry.shape)
            for entry in weights.manifest.tensors
        }
        return weights

    async def corrupt_a_byte(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        weights = await self._pack(version, base)
        flipped = np.array(await weights.buckets[0])
        flipped[100] ^= 1
        return replace(weights, buckets=(ray.put(flipped), *weights.buckets[1:]))

    async def drop_a_bucket(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        weights = await self._pack(version, base)
        return replace(weights, buckets=(*weights.buckets[:-1], _lost.remote()))

    def break_broadcast(self, fate: Fate) -> tuple[str, Fault]:
        """From now on the learner broadcasts; this time something happens at the second bucket of one broadcast."""

        async def fault(version: int, base: PublishedWeights | None) -> PublishedWeights:
            await self._serving()
            self._learners._sync = replace(self._learners._sync, transport="broadcast")
            weights = await self._pack(version, base)
            assert len(weights.buckets) > 1
            await self._learners._actors[0].__ray_call__.remote(faulty(fate, 1))
            return weights

        return f"a broadcast: {fate}", fault

    def kill_in(self, state: str, name: str, process: str) -> tuple[str, Fault]:
        """A process of a generator dies while its weights are in this state."""

        async def fault(version: int, base: PublishedWeights | None) -> PublishedWeights:
            member = await self._serving(name)
            call = _CANARY if (state, process) == ("deciding", "actor") else CALLS[state]
            install = HeldInstall(member.actor, call)
            await install.arm()
            self.checks.append(asyncio.create_task(self._die(install, member.actor, state, process)))
            return await self._pack(version, base)

        return f"{name}'s {process} while {state}", fault

    async def _die(self, install: HeldInstall, actor: Any, state: str, process: str) -> None:
        assert await install.reached() == state
        task = Task(task_id="asked", prompt="one two three", answer=None, verifier="none")
        request = GenerationRequest(group_id=f"asked-{state}-{process}", task=task, count=2, temperature=1.0)
        record, payload = actor.generate.remote(request)
        answer = asyncio.ensure_future(record)
        await asyncio.sleep(0.5)
        assert not answer.done(), "tokens left that nobody had verified"
        if process == "actor":
            install.processes["actor"].kill()
        else:
            await install.kill_inside(process)
        for refused in (answer, payload):
            try:
                await asyncio.wait_for(refused, _ORPHANS_S)
            except (RayActorError, GroupFailed):
                continue
            raise AssertionError(f"a dead {process} has answered")
        await _gone(install.processes)

    def kill_learner_in(self, state: str) -> tuple[str, Fault]:
        """The rank that has sent dies while a generator's weights are in this state; the version is committed."""

        async def fault(version: int, base: PublishedWeights | None) -> PublishedWeights:
            install = HeldInstall((await self._serving()).actor, CALLS[state])
            await install.arm()
            self.checks.append(asyncio.create_task(self._outlive(install, state)))
            return await self._pack(version, base)

        return f"learner while {state}", fault

    async def _outlive(self, install: HeldInstall, state: str) -> None:
        assert await install.reached() == state
        os.kill(await pid_of(self._learners._actors[0]), signal.SIGKILL)
        await install.let_go()

    async def kill_the_rank_that_sends(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        await self._serving()
        pid = await pid_of(self._learners._actors[0])
        os.kill(pid, signal.SIGSTOP)  # so that it cannot be done before it dies
        packing = asyncio.create_task(self._learners.pack(version, base))
        await asyncio.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        return await packing

    async def _serving(self, name: str | None = None) -> Member:
        """The generator of this name, or any, once it serves; and beside it another, if there must be one."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            serving = [member for member in self._generators._members if member.state == "serving"]
            for member in serving:
                if name is None or (member.name == name and len(serving) > 1):
                    return member
            await asyncio.sleep(0.1)
        raise TimeoutError(f"{name or 'no generator'} does not serve within {_PATIENCE_S:.0f} s")


class NotedGenerators(Generators):
    """Remembers all that has left them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.payloads: list[Any] = []

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        record, payload = await super().generate(request)
        self.payloads.append(payload)
        return record, payload


class TimedSync(WeightSync):
    """Remembers when each publish ended, and how, and what generators said of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ended: dict[int, tuple[float, str]] = {}
        self.records: list[SyncRecord] = []

    async def publish(self, version: int) -> PublishReport:
        outcome = "failed"
        try:
            report = await super().publish(version)
            outcome = "committed"
            self.records += report.records
        except LearnerLost:
            outcome = "learner lost"
            raise
        finally:
            self.ended[version] = (time.monotonic(), outcome)
        return report


async def _gone(processes: dict[str, psutil.Process]) -> None:
    """Wait until none of an engine's processes is left."""
    until = time.monotonic() + _ORPHANS_S
    while left := [name for name, process in processes.items() if _runs(process)]:
        assert time.monotonic() < until, f"still there {_ORPHANS_S:.0f} s after the death: {left}"
        await asyncio.sleep(0.1)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@ray.remote(num_cpus=0, max_retries=0)
def _lost() -> np.ndarray:
    raise RuntimeError("this bucket is gone")


async def pid_of(actor: Any) -> int:
    return await actor.__ray_call__.remote(lambda self: os.getpid())
