"""Actors that own an engine, as members of one service: the least loaded works next, a distrusted one is rebuilt.

A member is `starting` while it is made or made anew, then `serving`; `waiting` between the two, if it must be given
something first. Whatever goes wrong with it, what it was doing fails, the actor is killed and a new one takes its name
and joins. The run stops only when the restart budget is spent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import ray
from ray.exceptions import RayActorError

from funicular.actors.busy_clock import BusyClock
from funicular.actors.errors import GroupFailed, RunStopped, first_line
from funicular.actors.readings import Reading
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget

log = logging.getLogger(__name__)

STATES = ("starting", "waiting", "installing", "serving")
"""What a member can be, to people: `installing` is a version under way, whatever its state is to the code."""
HEALTH_PERIOD_S = 15.0
HEALTH_DEADLINE_S = 120.0
"""A busy event loop answers late; only one that is stuck does not answer at all."""


@dataclass(eq=False)
class Member:
    """One place in the service, whatever actor fills it."""

    name: str
    actor: Any
    state: str = "starting"
    in_flight: int = 0
    installs: int = 0
    """Installs ever asked of this actor: each has its own label in the engine."""
    version: int | None = None
    """Committed here."""
    installing: bool = False
    """Was asked for an install and has not answered."""
    refusal: str = ""
    """Why it refused the newest version, if it did."""


class EngineMembers:
    """Starts members, watches their health and rebuilds them. Subclasses say what they are asked for.

    Args:
        role: first part of the members' names.
        make_actor: starts the Ray actor for a name; the engine starts with its `start()`.
        count: number of members.
        budget: restarts that the run survives.
    """

    def __init__(
        self,
        role: str,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        start_deadline_s: float,
        budget: RestartBudget,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        self._role = role
        self._make_actor = make_actor
        self._kill_actor = kill_actor
        self._start_deadline_s = start_deadline_s
        self._budget = budget
        self._members = [Member(f"{role}-{i}", make_actor(f"{role}-{i}")) for i in range(count)]
        self._changed = asyncio.Condition()
        self._fatal: Exception | None = None
        self._served = False
        self._background: set[asyncio.Task[None]] = set()
        self._busy = BusyClock(count)
        self.gpus: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
        """Entered by whoever starts an engine anew: waits where others have its GPUs' memory (`gpu_turns.py`)."""

    async def start(self) -> None:
        """Start every engine; returns when all answer. One that dies meanwhile is started again."""
        await asyncio.gather(*(self._start(member) for member in self._members))
        for member in self._members:
            await self._begin(member)
        self._spawn(self._watch_health())

    @property
    def serving(self) -> int:
        """How many serve now."""
        return sum(member.state == "serving" for member in self._members)

    async def now(self) -> list[Reading]:
        """How many members are what, and of each the groups in its hands and its version."""
        states = ["installing" if member.installing else member.state for member in self._members]
        readings = [
            Reading(name="now/engines", value=states.count(state), labels={"role": self._role, "state": state})
            for state in STATES
        ]
        for member in self._members:
            part = {"part": member.name}
            readings.append(Reading(name="now/groups", value=member.in_flight, labels=part))
            if member.version is not None:
                readings.append(Reading(name="now/version", value=member.version, labels=part))
        return readings

    async def _begin(self, member: Member) -> None:
        """All engines have started for the first time."""
        await self._set_state(member, "serving")

    async def _join(self, member: Member) -> str | None:
        """A rebuilt engine has started: have it serve. Returns why it must be rebuilt once more, if it must."""
        await self._set_state(member, "serving")
        return None

    async def _start(self, member: Member) -> None:
        while True:
            try:
                what = f"{member.name}: engine start"
                await call(member.actor.start.remote(), deadline_s=self._start_deadline_s, what=what)
                return
            except (RayActorError, DeadlineExceeded) as error:
                self._recreate(member, first_line(error))
            except Exception as error:
                if not self._served:  # most likely the recipe or the installation
                    raise RunStopped(f"{member.name}: the engine does not start: {error}") from error
                self._recreate(member, first_line(error))  # memory that the dead engine held may still be in use

    async def _least_loaded(self) -> Member:
        return await self._first("serving")

    async def _first(self, *states: str) -> Member:
        """The least loaded member in the first of these states that any is in, as soon as any is.

        Later states count only when no member is still starting.
        """

        deadline_s = 2 * self._start_deadline_s
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                while (found := self._fatal or self._least_loaded_in(states)) is None:
                    await self._changed.wait()
        except TimeoutError as error:
            raise RunStopped(f"no {self._role} could serve for {deadline_s:.0f} s") from error
        if isinstance(found, Exception):
            raise found
        return found

    def _least_loaded_in(self, states: Sequence[str]) -> Member | None:
        for state in states:
            members = (member for member in self._members if member.state == state)
            if found := min(members, key=attrgetter("in_flight"), default=None):
                return found
            if any(member.state == "starting" for member in self._members):
                return None
        return None

    def _work(self, member: Member, change: int) -> None:
        """A request begins (1) or ends (-1) there."""
        member.in_flight += change
        self._busy.change(change if member.in_flight == max(change, 0) else 0)

    def _distrust(self, member: Member, actor: Any, reason: str) -> None:
        if member.actor is actor and member.state in ("serving", "waiting"):  # a late error is of a former actor
            member.state = "starting"
            self._spawn(self._rebuild(member, reason))

    async def _rebuild(self, member: Member, reason: str) -> None:
        self._dismiss(member, reason)
        async with self.gpus():  # an actor is told its GPUs when it is made, and they may be others by then
            self._make(member)
            await self._start(member)
            while (again := await self._join(member)) is not None:
                self._recreate(member, again)
                await self._start(member)

    def _recreate(self, member: Member, reason: str) -> None:
        self._dismiss(member, reason)
        self._make(member)

    def _dismiss(self, member: Member, reason: str) -> None:
        log.warning("%s is rebuilt: %s", member.name, reason)
        self._budget.spend(member.name, reason)
        self._kill_actor(member.actor)

    def _make(self, member: Member) -> None:
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

    async def _set_state(self, member: Member, state: str) -> None:
        async with self._changed:
            member.state = state
            self._served = self._served or state == "serving"
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
                self._fatal = RunStopped(f"{self._role}s: {error}")
                self._fatal.__cause__ = error
                self._changed.notify_all()
