"""The generators as one service: the least loaded takes the next group; a dead or distrusted one is rebuilt.

A member is `starting` while it is made or made anew, then `serving`; `waiting` before the first publish, and while it
refuses a version that will be sent again.
Whatever goes wrong with it, its groups fail (the loop draws them again), the actor is killed and a new one takes its
name, loads the newest published weights and joins. The run stops only when the restart budget is spent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from funicular.actors.busy_clock import BusyClock
from funicular.actors.errors import GroupFailed, RunStopped, first_line
from funicular.actors.types import GenerationRecord, GenerationRequest
from funicular.actors.weights import PublishedWeights, SyncRecord, WeightSyncError
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget

log = logging.getLogger(__name__)

HEALTH_PERIOD_S = 15.0
HEALTH_DEADLINE_S = 120.0
"""A busy event loop answers late; only one that is stuck does not answer at all."""


@dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    state: str = "starting"
    in_flight: int = 0
    installs: int = 0
    """Installs ever asked of this actor: each has its own label in the engine."""
    version: int | None = None
    """Committed here."""
    refusal: str = ""
    """Why it refused the newest version, if it did."""


class Generators:
    """Routes groups to generators and keeps every generator on verified weights.

    Args:
        make_actor: starts the Ray actor for a name; the engine starts with its `start()`.
        count: number of generators.
        install_deadline_s: seconds within which a generator must have committed a version.
        budget: restarts that the run survives.
    """

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        start_deadline_s: float,
        install_deadline_s: float,
        budget: RestartBudget,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        self._make_actor = make_actor
        self._kill_actor = kill_actor
        self._start_deadline_s = start_deadline_s
        self._install_deadline_s = install_deadline_s
        self._budget = budget
        self._members = [_Member(f"generator-{i}", make_actor(f"generator-{i}")) for i in range(count)]
        self._changed = asyncio.Condition()
        self._newest: PublishedWeights | None = None
        self._fatal: Exception | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._busy = BusyClock(count)

    async def start(self) -> None:
        """Start every engine; returns when all answer. A generator that dies meanwhile is started again."""
        await asyncio.gather(*(self._start(member) for member in self._members))
        for member in self._members:
            member.state = "waiting"
        self._spawn(self._watch_health())

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        """Have one group generated.

        Returns:
            The record, and the reference to the payload, which the caller owns.

        Raises:
            GroupFailed: this group could not be generated; says whether to try its task again.
            RunStopped: no generator can be brought back.
        """
        member = await self._least_loaded()
        actor = member.actor
        member.in_flight += 1
        self._busy.change(+1 if member.in_flight == 1 else 0)
        try:
            record_ref, payload_ref = actor.generate.remote(request)
            # No deadline here: the generator itself watches for progress, and the health watch for the generator.
            record = await call(record_ref, deadline_s=None, what=f"{member.name}: {request.group_id}")
            return record, payload_ref
        except RayActorError as error:
            self._distrust(member, actor, first_line(error))
            raise GroupFailed("generator_died", f"{member.name}: {first_line(error)}") from error
        except GroupFailed as error:
            if error.reason in ("engine_died", "no_progress"):
                self._distrust(member, actor, str(error))
            raise
        finally:
            member.in_flight -= 1
            self._busy.change(-1 if member.in_flight == 0 else 0)

    async def install(self, weights: PublishedWeights, *, last_attempt: bool) -> list[SyncRecord]:
        """Have every live generator that lacks this version load, verify and commit it, each at its own pace.

        One that dies is rebuilt in the background and joins with the newest weights; so is one that refuses the
        version on the last attempt. Before that it stays paused, and `behind` says that it waits.
        """
        self._newest = weights
        version = weights.manifest.version
        lacking = [m for m in self._members if m.state in ("waiting", "serving") and m.version != version]
        records = await asyncio.gather(*(self._install(member, weights) for member in lacking))
        if last_attempt:
            for member in self._members:
                if member.state == "waiting":
                    self._distrust(member, member.actor, member.refusal)
        return [record for record in records if record is not None]

    @property
    def behind(self) -> bool:
        """True while a live generator refuses the newest version."""
        return any(member.state == "waiting" for member in self._members)

    async def until_serving(self) -> None:
        """Return when at least one generator serves verified weights.

        Raises:
            RunStopped: none can be brought back.
            DeadlineExceeded: none was brought back in time.
        """
        await self._least_loaded()

    async def abort_all(self, reason: str) -> None:
        """Abort every running request: their groups fail with `reason`."""
        serving = [m for m in self._members if m.state in ("waiting", "serving")]
        for member in serving:
            try:
                await call(member.actor.abort_all.remote(reason), deadline_s=60, what=f"{member.name}: abort")
            except (RayActorError, DeadlineExceeded) as error:
                self._distrust(member, member.actor, first_line(error))

    async def metrics(self) -> dict[str, float]:
        """Number of serving generators and the fraction of time that generators had nothing to do."""
        serving = sum(m.state == "serving" for m in self._members)
        return {"perf/generator_idle_frac": self._busy.idle_fraction(), "generators/serving": float(serving)}

    async def _start(self, member: _Member) -> None:
        while True:
            try:
                what = f"{member.name}: engine start"
                await call(member.actor.start.remote(), deadline_s=self._start_deadline_s, what=what)
                return
            except (RayActorError, DeadlineExceeded) as error:
                self._recreate(member, first_line(error))
            except Exception as error:
                if self._newest is None:  # nothing was ever served: most likely the recipe or the installation
                    raise RunStopped(f"{member.name}: the engine does not start: {error}") from error
                self._recreate(member, first_line(error))  # memory that the dead engine held may still be in use

    async def _least_loaded(self) -> _Member:
        def serving() -> list[_Member]:
            return [m for m in self._members if m.state == "serving"]

        deadline_s = 2 * self._start_deadline_s
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                await self._changed.wait_for(lambda: bool(serving()) or self._fatal is not None)
                if self._fatal is not None:
                    raise self._fatal
                return min(serving(), key=lambda m: m.in_flight)
        except TimeoutError as error:
            raise RunStopped(f"no generator could serve for {deadline_s:.0f} s") from error

    async def _install(self, member: _Member, weights: PublishedWeights) -> SyncRecord | None:
        """None: it refused, and is `waiting`; or it is being rebuilt."""
        member.installs += 1
        version = weights.manifest.version
        actor = member.actor
        try:
            ref = actor.install.remote(weights, member.installs)
            record = await call(ref, deadline_s=self._install_deadline_s, what=f"{member.name}: version {version}")
        except WeightSyncError as error:
            log.warning("%s refused version %d: %s", member.name, version, error)
            member.refusal = str(error)
            if member.state == "serving":
                member.state = "waiting"
            return None
        except (RayActorError, DeadlineExceeded) as error:
            member.refusal = first_line(error)
            self._distrust(member, actor, member.refusal)
            return None
        member.version = version
        if self._newest is None or self._newest.manifest.version == version:  # else it has to load again
            await self._set_state(member, "serving")
        return record

    def _distrust(self, member: _Member, actor: Any, reason: str) -> None:
        if member.actor is actor and member.state in ("serving", "waiting"):  # a late error is of a former actor
            member.state = "starting"
            self._spawn(self._rebuild(member, reason))

    async def _rebuild(self, member: _Member, reason: str) -> None:
        while member.state == "starting":
            self._recreate(member, reason)
            await self._start(member)
            while self._newest is not None and member.version != self._newest.manifest.version:
                if await self._install(member, self._newest) is None:
                    reason = member.refusal  # fresh, and it still refuses: nothing is gained by sending again
                    break

    def _recreate(self, member: _Member, reason: str) -> None:
        log.warning("%s is rebuilt: %s", member.name, reason)
        self._budget.spend(member.name, reason)
        self._kill_actor(member.actor)
        member.actor = self._make_actor(member.name)
        member.installs = 0
        member.version = None
        member.refusal = ""

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            for member in self._members:
                if member.state != "serving":
                    continue
                actor = member.actor
                try:
                    what = f"{member.name}: health"
                    await call(actor.health.remote(), deadline_s=HEALTH_DEADLINE_S, what=what)
                except (RayActorError, DeadlineExceeded, GroupFailed) as error:
                    self._distrust(member, actor, first_line(error))

    async def _set_state(self, member: _Member, state: str) -> None:
        async with self._changed:
            member.state = state
            self._changed.notify_all()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            async with self._changed:
                self._fatal = RunStopped(f"generators: {error}")
                self._fatal.__cause__ = error
                self._changed.notify_all()
