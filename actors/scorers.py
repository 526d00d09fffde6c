"""The scorers as one service: the least loaded takes the next group; a dead one is replaced, its groups re-scored.

Scoring the same completions again is safe, unlike generating them again: it draws nothing at random.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from funicular.actors.busy_clock import BusyClock
from funicular.actors.errors import GroupFailed, RunStopped
from funicular.actors.readings import Reading
from funicular.actors.sandbox_pools import SandboxPools
from funicular.actors.scorer import ErrorStreaks, ScoreReport
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget
from funicular.rewards.types import Task

log = logging.getLogger(__name__)

TRIES = 2


@dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    pools: int
    """`SandboxPools.changes` when the actor was last told which pools there are."""
    departures: int
    """`SandboxPools.departures` then."""
    in_flight: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """A scorer serves one call at a time; held during it, so that the deadline counts no waiting."""


class Scorers:
    """Routes groups to scorers.

    Args:
        make_actor: starts the Ray actor for a name.
        deadline_s: seconds within which a scorer must answer for one group, all its time limits included;
            waiting for groups before it does not count.
        pools: the sandbox pools that scorers judge code in, for their metrics; None: no task needs them.
        kill_actor: ends an actor at once.
    """

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        deadline_s: float,
        streaks: ErrorStreaks,
        budget: RestartBudget,
        pools: SandboxPools | None = None,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        self._make_actor = make_actor
        self._deadline_s = deadline_s
        self._streaks = streaks
        self._budget = budget
        self._kill_actor = kill_actor
        self._pools = pools
        self._busy = BusyClock(count)
        self._waits: list[float] = []
        told = (pools.changes, pools.departures) if pools else (0, 0)
        self._members = [_Member(f"scorer-{i}", make_actor(f"scorer-{i}"), *told) for i in range(count)]

    async def score(self, task: Task, payload: Any) -> ScoreReport:
        """Score one group.

        Args:
            payload: ray.ObjectRef of its GroupPayload; fetched by the scorer, not by the caller.

        Raises:
            GroupFailed: the payload is lost (`payload_lost`), or scorers died over it or missed the deadline
                (`scorer_died`), or raised (`scorer_failed`), or its sandbox nodes left twice (`pools_left`).
            RunStopped: a reward function raised in too many groups in a row.
            RestartBudgetSpent: a scorer could not be replaced any more.
        """
        failures: list[GroupFailed] = []
        while len(failures) < TRIES:
            member = min(self._members, key=attrgetter("in_flight"))
            member.in_flight += 1
            began_waiting = time.monotonic()
            try:
                async with member.turn:  # bounded: whoever holds it has the deadline
                    self._waits.append(time.monotonic() - began_waiting)
                    await self._tell_of_pools(member)
                    answer = await self._ask(member, task, payload)
            finally:
                member.in_flight -= 1
            if isinstance(answer, ScoreReport):
                self._streaks.observe(answer.raised)
                return answer
            failures.append(answer)
        raise failures[-1]

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call: whether scoring holds up anything, and what the sandbox did."""
        metrics = {"perf/scorer_idle_frac": self._busy.idle_fraction()}
        if self._waits:
            metrics["time/score_wait_s"] = statistics.fmean(self._waits)
            self._waits.clear()
        return metrics | (await self._pools.metrics() if self._pools else {})

    async def now(self) -> list[Reading]:
        """Groups at each scorer, how many scorers are busy, how many groups wait for one, and what the sandbox does."""
        busy = sum(member.turn.locked() for member in self._members)
        waiting = sum(max(0, member.in_flight - 1) for member in self._members)
        return [
            *(Reading(name="now/groups", value=m.in_flight, labels={"part": m.name}) for m in self._members),
            Reading(name="now/scorers", value=busy, labels={"state": "busy"}),
            Reading(name="now/scorers", value=len(self._members) - busy, labels={"state": "idle"}),
            Reading(name="now/scorers_waiting", value=waiting),
            *(await self._pools.now() if self._pools else ()),
        ]

    async def _tell_of_pools(self, member: _Member) -> None:
        """Before its next group; Ray keeps the order of calls."""
        if self._pools is None:
            return
        await self._pools.some()
        if member.pools != self._pools.changes:
            member.pools, member.departures = self._pools.changes, self._pools.departures
            member.actor.use_pools.remote(self._pools.handles)

    async def _lost_its_pools(self, member: _Member, report: ScoreReport) -> bool:
        """Whether judging raised, and nodes of pools have left since the scorer was told of them."""
        if self._pools is None or not any(name.startswith("verifier ") for name in report.raised):
            return False
        await self._pools.follow()
        return member.departures != self._pools.departures

    async def _ask(self, member: _Member, task: Task, payload: Any) -> ScoreReport | GroupFailed:
        """A GroupFailed that is returned, not raised: scorer or pools were replaced, another try may succeed."""
        what = f"{member.name}: {task.task_id}"
        self._busy.change(1)
        try:
            report = await call(member.actor.score.remote(task, payload), deadline_s=self._deadline_s, what=what)
            if await self._lost_its_pools(member, report):
                return GroupFailed("pools_left", f"{what}: {report.raised}")
            return report
        except (GroupFailed, RunStopped):
            raise
        except (RayActorError, DeadlineExceeded) as error:
            failure = GroupFailed("scorer_died", f"{what}: {_line(error)}")
        except Exception as error:  # whatever its process can do: not load again, not answer sensibly, ...
            if isinstance(error, RayError) and not _raised_there(error):
                raise GroupFailed("payload_lost", _line(error)) from error
            failure = GroupFailed("scorer_failed", f"{what}: {type(error).__name__}: {_line(error)}")
        finally:
            self._busy.change(-1)
        self._replace(member, failure.detail)
        return failure

    def _replace(self, member: _Member, reason: str) -> None:
        log.warning("%s is replaced: %s", member.name, reason)
        self._budget.spend(member.name, reason)
        self._kill_actor(member.actor)
        member.actor = self._make_actor(member.name)
        if self._pools:
            member.pools, member.departures = self._pools.changes, self._pools.departures


def _raised_there(error: RayError) -> bool:
    """The method's own exception, which Ray could not hand on as itself: no Exception, or one that does not pickle."""
    return isinstance(error, RayTaskError) or type(error) is RayError


def _line(error: Exception) -> str:
    lines = str(error).splitlines() or ["no message"]
    return lines[-1 if isinstance(error, RayTaskError) else 0]  # a traceback says it at the end
