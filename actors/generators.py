"""The generators as one service: the least loaded takes the next group; a dead or distrusted one is rebuilt.

A member is `waiting` before the first publish, and while it refuses a version that will be sent again. Groups of one
that is rebuilt fail, and the loop draws them again; the new actor loads the newest published weights and joins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from funicular.actors.engine_members import EngineMembers, Member
from funicular.actors.errors import GroupFailed, first_line
from funicular.actors.serving_stats import ServingStats, serving_metrics
from funicular.actors.types import GenerationRecord, GenerationRequest
from funicular.actors.weights import PublishedWeights, SyncRecord, WeightSyncError
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget

log = logging.getLogger(__name__)

REPORT_DEADLINE_S = 5.0
"""Statistics of a step are not worth more of it."""


class Generators(EngineMembers):
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
        cancel_call: Callable[[Any], None] = ray.cancel,
    ) -> None:
        super().__init__(
            "generator",
            make_actor,
            count=count,
            start_deadline_s=start_deadline_s,
            budget=budget,
            kill_actor=kill_actor,
        )
        self._install_deadline_s = install_deadline_s
        self._cancel_call = cancel_call
        self._newest: PublishedWeights | None = None

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
        record_ref, payload_ref = actor.generate.remote(request)
        self._work(member, +1)
        try:
            # No deadline here: the generator itself watches for progress, and the health watch for the generator.
            record = await call(record_ref, deadline_s=None, what=f"{member.name}: {request.group_id}")
            return record, payload_ref
        except asyncio.CancelledError:
            self._cancel_call(record_ref)  # its slot or attempt is gone: the engine is to work for others
            raise
        except RayActorError as error:
            self._distrust(member, actor, first_line(error))
            raise GroupFailed("generator_died", f"{member.name}: {first_line(error)}") from error
        except GroupFailed as error:
            if error.reason in ("engine_died", "no_progress"):
                self._distrust(member, actor, str(error))
            raise
        finally:
            self._work(member, -1)

    async def install(self, weights: PublishedWeights, *, last_attempt: bool) -> list[SyncRecord]:
        """Have every live generator that lacks this version load, verify and commit it, each at its own pace.

        One that dies is rebuilt in the background and joins with the newest weights; so is one that refuses the
        version on the last attempt. Before that it stays paused, and `behind` says that it waits.
        """
        self._newest = weights.in_store_only()  # who joins later must not disturb a step
        self._served = True  # whatever fails from now on is no fault of the recipe
        version = weights.manifest.version
        lacking = [member for member in self._live() if member.version != version]
        records = await asyncio.gather(*(self._install(member, weights) for member in lacking))
        if last_attempt:
            for member in lacking:
                if member.state == "waiting":
                    self._distrust(member, member.actor, member.refusal)
        return [record for record in records if record is not None]

    @property
    def behind(self) -> bool:
        """True while a live generator refuses the newest version."""
        return any(member.state == "waiting" for member in self._members)

    async def until_serving(self) -> bool:
        """Return when at least one generator serves verified weights.

        Returns:
            False: none does, because those that were rebuilt refuse the newest version too; it must be packed anew.

        Raises:
            RunStopped: none can be brought back, or none was in time.
        """
        return (await self._first("serving", "waiting")).state == "serving"

    async def sleep(self) -> None:
        """Have every engine free its memory, for others to use; groups under way fail. One that cannot is rebuilt.

        They forget their weights, so each needs an install before it serves again.
        """
        await asyncio.gather(*(self._sleep(member) for member in self._live()))

    async def wake(self) -> None:
        """Have every engine take its memory again, for an install that comes next. One that cannot is rebuilt."""
        await asyncio.gather(*(self._ask(member, "wake") for member in self._live()))

    async def wake_and_serve(self) -> None:
        """Have every engine take its memory again, and install what was published last, if anything was."""
        await self.wake()
        if self._newest is not None:
            await self.install(self._newest, last_attempt=True)

    def rebuild_all(self, reason: str) -> None:
        """Make every engine anew."""
        for member in self._live():
            self._distrust(member, member.actor, reason)

    def _live(self) -> list[Member]:
        return [member for member in self._members if member.state in ("waiting", "serving")]

    async def _sleep(self, member: Member) -> None:
        actor = member.actor
        if await self._ask(member, "sleep") and self._is_current(member, actor):
            member.version = None
            await self._set_state(member, "waiting")

    async def _ask(self, member: Member, method: str) -> bool:
        """False: it failed, and is rebuilt."""
        actor = member.actor
        try:
            what = f"{member.name}: {method}"
            await call(getattr(actor, method).remote(), deadline_s=self._install_deadline_s, what=what)
        except (RayActorError, DeadlineExceeded, GroupFailed) as error:
            self._distrust(member, actor, first_line(error))
            return False
        return True

    async def abort_all(self, reason: str) -> None:
        """Abort every running request: their groups fail with `reason`."""
        for member in self._live():
            try:
                await call(member.actor.abort_all.remote(reason), deadline_s=60, what=f"{member.name}: abort")
            except (RayActorError, DeadlineExceeded) as error:
                self._distrust(member, member.actor, first_line(error))

    async def metrics(self) -> dict[str, float]:
        """How many serve, how much they idled, and how their engines served, since the last call."""
        serving = [member for member in self._members if member.state == "serving"]
        reports = await asyncio.gather(*(self._report(member) for member in serving))
        return {
            "perf/generator_idle_frac": self._busy.idle_fraction(),
            "generators/serving": float(self.serving),
            **serving_metrics([report for report in reports if report is not None]),
        }

    async def _report(self, member: Member) -> ServingStats | None:
        """None: it does not answer; its health is somebody else's matter."""
        what = f"{member.name}: serving statistics"
        try:
            return await call(member.actor.serving_stats.remote(), deadline_s=REPORT_DEADLINE_S, what=what)
        except (RayActorError, DeadlineExceeded) as error:
            log.warning("%s", first_line(error))
            return None

    async def _begin(self, member: Member) -> None:
        await self._set_state(member, "waiting")

    async def _join(self, member: Member) -> str | None:
        """One that refuses the newest version waits, like any other, for it to be packed anew, or for the next."""
        refused = False
        while self._newest is not None and member.version != self._newest.manifest.version and not refused:
            weights = self._newest
            try:
                await self._ask_to_install(member, weights)
            except WeightSyncError as error:
                refused = weights is self._newest
                self._note_refusal(member, error)
            except (RayActorError, DeadlineExceeded, GroupFailed) as error:
                return first_line(error)
            else:
                member.version = weights.manifest.version
        await self._set_state(member, "waiting" if refused or self._newest is None else "serving")
        return None

    async def _install(self, member: Member, weights: PublishedWeights) -> SyncRecord | None:
        """None: it refused, and is `waiting`; or it is being rebuilt."""
        actor = member.actor
        try:
            record = await self._ask_to_install(member, weights)
        except WeightSyncError as error:
            if self._is_current(member, actor):
                self._note_refusal(member, error)
                await self._set_state(member, "waiting")
            return None
        except (RayActorError, DeadlineExceeded, GroupFailed) as error:  # sending again to a dead engine heals nothing
            self._distrust(member, actor, first_line(error))
            return None
        if not self._is_current(member, actor):  # it was found out to be broken meanwhile
            return None
        if record.broadcast_broken:
            what = f"{member.name}: the broadcast of version {record.version} broke, and the object store stood in"
            log.warning("%s: %s", what, record.broadcast_broken)
        member.version = weights.manifest.version
        await self._set_state(member, "serving")
        return record

    async def _ask_to_install(self, member: Member, weights: PublishedWeights) -> SyncRecord:
        member.installs += 1
        what = f"{member.name}: version {weights.manifest.version}"
        ref = member.actor.install.remote(weights, member.installs)
        member.installing = True
        try:
            return await call(ref, deadline_s=self._install_deadline_s, what=what)
        finally:
            member.installing = False

    def _note_refusal(self, member: Member, error: WeightSyncError) -> None:
        log.warning("%s refused a version: %s", member.name, error)
        member.refusal = str(error)

    @staticmethod
    def _is_current(member: Member, actor: Any) -> bool:
        return member.actor is actor and member.state != "starting"
