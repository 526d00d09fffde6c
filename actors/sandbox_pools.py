"""All sandbox pools of a run: on every node that is there at the start, before anything expensive, and on nodes that
join later. What they report.

A pool is asked by scorers only after its node has proven its isolation; one whose node left is asked no more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from funicular.actors.errors import RunStopped, first_line
from funicular.actors.readings import Reading
from funicular.actors.sandbox_pool import PULSE, WATCH, PoolReport
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.rewards.sandbox.isolation import IsolationUnavailable, below
from funicular.rewards.sandbox.stats import SandboxStats
from funicular.rewards.sandbox.types import Level

log = logging.getLogger(__name__)

START_S = 300.0
"""Seconds for a pool's process and all its slots to start."""
REPORT_S = 10.0
NOW_S = 3.0
"""Seconds for a pool to say what it does now."""
LOOK_S = 10.0
"""Between two looks at the cluster's nodes."""
NO_POOL_S = 600.0
"""Seconds that a run waits when the nodes of all its pools have left."""
SILENT_REPORTS, SILENT_S = 3, START_S
"""A pool that misses so many reports in a row, over at least so many seconds, hangs and is replaced. Slots that start
on a busy node take long too, and must be let."""
SLOTS_PER_POOL = 16
"""A pool is one Python process, which spends 0.8 ms on a job of some 6 ms: that bounds the slots it keeps busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The nodes of a cluster, as they are now."""

    alive: frozenset[str]
    """Ids of all."""
    slots: Mapping[str, int]
    """Id of those that pools are wanted on to the slots there, at most."""


@dataclass(eq=False)
class _Member:
    node: str
    actor: Any
    report: PoolReport | None = None
    """The last one; None before the start."""
    told: PoolReport | None = None
    """The last answer to `now`."""
    missed: int = 0
    """Reports in a row."""
    silent_since: float = 0.0
    """When it missed the first of them."""


class SandboxPools:
    """One pool per node; several where a node has more than `SLOTS_PER_POOL` slots.

    Args:
        make_actor: starts the Ray actor of a pool on a node, given the node's id and the pool's slots, at most.
        nodes: node id to the slots on it, at most, at the start.
        look: the nodes as they are now; called in a thread, now and then. None: nodes neither join nor leave.
        say: called with sentences about nodes that join and leave.
        restart_actor: ends an actor at once, for Ray to start it again under the same handle, up to its max_restarts.
        kill_actor: ends an actor for good.
    """

    def __init__(
        self,
        make_actor: Callable[[str, int], Any],
        nodes: Mapping[str, int],
        *,
        look: Callable[[], Nodes] | None = None,
        say: Callable[[str], None] = log.info,
        restart_actor: Callable[[Any], None] = lambda actor: ray.kill(actor, no_restart=False),
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        self._make_actor = make_actor
        self._look = look
        self._say = say
        self._restart_actor = restart_actor
        self._kill_actor = kill_actor
        self._members = [member for node, slots in nodes.items() for member in self._made(node, slots)]
        self._language = ""
        self._joining: dict[str, asyncio.Task[None]] = {}
        """By node id. Tasks that have ended stay, as long as their node: it was taken in, or refused for good."""
        self._following: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self.changes = 0
        """How often `handles` has changed."""
        self.departures = 0
        """How often nodes of pools were found to have left."""
        self._told_of: set[str] = set()
        """Ids of nodes that have joined and whose pools do not start."""
        self._restarts = 0
        self._judged: Counter[str] = Counter()
        self._read_at = time.monotonic()

    @property
    def handles(self) -> list[tuple[str, Any]]:
        """Node id and actor of each pool."""
        return [(member.node, member.actor) for member in self._members]

    async def start(self, language: str = "python") -> list[str]:
        """Start every pool's slots; a sentence about each node, for people.

        Args:
            language: of the programs that they will judge.

        Raises:
            IsolationUnavailable: a node does not reach the level that the recipe requires.
            ValueError: a node has no interpreter or compiler of the language.
            RunStopped: a pool's process does not start.
        """
        self._language = language
        reports = await asyncio.gather(*(self._start(member) for member in self._members))
        self._read_at = time.monotonic()
        by_node: dict[str, list[PoolReport]] = {}
        for member, report in zip(self._members, reports, strict=True):
            member.report = report
            by_node.setdefault(member.node, []).append(report)
        if self._look:
            self._following = asyncio.create_task(self._keep_following())
        return [_sentence(node, on_node) for node, on_node in by_node.items()]

    async def follow(self) -> None:
        """Let go of nodes that have left, and begin to take in those that have joined."""
        if self._look is None:
            return
        async with self._looking:  # an older look must not undo what a newer one found
            try:
                nodes = await asyncio.to_thread(self._look)
                self._let_go(nodes.alive)
                self._take_in(nodes.slots)
            except Exception:  # of whatever kind: the pools that there are go on
                log.exception("looking for sandbox nodes")

    async def some(self) -> None:
        """Return when there is a pool to ask.

        Raises:
            RunStopped: the nodes of all have left, and no other came in time.
        """
        try:
            async with asyncio.timeout(NO_POOL_S):
                while not self._members:
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise RunStopped(f"every node with a sandbox pool has left, and none came in {NO_POOL_S:.0f} s") from error

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call, over all pools that answer; a silent pool must not stop a run."""
        members = list(self._members)  # nodes may leave meanwhile
        reports = await asyncio.gather(*(self._report(member) for member in members))
        now = time.monotonic()
        elapsed_s, self._read_at = now - self._read_at, now
        total: SandboxStats | None = None
        lowest = Level.L3
        for member, report in zip(members, reports, strict=True):
            if report is None:
                continue
            stats = _news(member.report, report)
            self._restarts += member.report is not None and member.report.life != report.life
            member.report = report
            lowest = report.level if below(report.level, lowest) else lowest
            total = total.plus(stats) if total else stats
        return _metrics(total, lowest, elapsed_s, self._restarts) if total else {}

    async def now(self) -> list[Reading]:
        """Pools, slots and submissions as they are now; of pools that are silent only that they are."""
        members = list(self._members)
        reports = await asyncio.gather(*(self._ask_now(member) for member in members))
        answers = [report for report in reports if report is not None]
        for member, report in zip(members, reports, strict=True):
            if report is not None:
                self._judged.update(_news(member.told, report).outcomes)
                member.told = report
        pools = {"answering": len(answers), "silent": len(members) - len(answers)}
        busy = sum(report.stats.busy for report in answers)
        slots = {"busy": busy, "idle": sum(report.slots for report in answers) - busy}
        return [
            *(Reading(name="now/sandbox_pools", value=n, labels={"state": state}) for state, n in pools.items()),
            *(Reading(name="now/sandbox_slots", value=n, labels={"state": state}) for state, n in slots.items()),
            Reading(name="now/sandbox_waiting", value=sum(report.stats.waiting for report in answers)),
            *(
                Reading(name="now/sandbox_judged", value=count, labels={"outcome": outcome})
                for outcome, count in self._judged.items()
            ),
        ]

    def _made(self, node: str, slots: int) -> list[_Member]:
        return [_Member(node, self._make_actor(node, share)) for share in _shares(slots)]

    def _let_go(self, alive: frozenset[str]) -> None:
        gone = [member for member in self._members if member.node not in alive]
        for node in {member.node for member in gone}:
            self._say(f"node {node[:8]} has left; its sandbox pools are asked no more")
        for member in gone:
            self._members.remove(member)
            self._kill_actor(member.actor)
        self.changes += bool(gone)
        self.departures += bool(gone)
        self._joining = {node: task for node, task in self._joining.items() if node in alive}

    def _take_in(self, slots_of: Mapping[str, int]) -> None:
        here = {member.node for member in self._members}
        for node, slots in slots_of.items():
            if slots and node not in here and node not in self._joining:
                self._joining[node] = asyncio.create_task(self._join(node, slots))

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.follow()

    async def _join(self, node: str, slots: int) -> None:
        """Have a node prove its isolation; only then may its pools be asked. One that does not is let alone."""
        members = self._made(node, slots)
        answers = await asyncio.gather(*(self._start(member) for member in members), return_exceptions=True)
        reports = [answer for answer in answers if isinstance(answer, PoolReport)]
        if len(reports) == len(members):
            for member, report in zip(members, reports, strict=True):
                member.report = report
            self._members += members
            self.changes += 1
            self._say(f"joined: {_sentence(node, reports)}")
            return
        for member in members:
            self._kill_actor(member.actor)
        failure = next(answer for answer in answers if not isinstance(answer, PoolReport))
        if isinstance(failure, RunStopped):  # it did not start: worth another try
            log.warning("%s", failure)
            if node not in self._told_of:
                self._told_of.add(node)
                self._say(f"node {node[:8]} has joined, and is tried again and again: {first_line(failure)}")
            self._joining.pop(node, None)
        else:
            self._say(f"node {node[:8]} has joined and gets no sandbox pool: {failure}")

    async def _ask_now(self, member: _Member) -> PoolReport | None:
        what = f"the sandbox pool of node {member.node[:8]}: what it does now"
        asking = member.actor.now.options(concurrency_group=PULSE).remote()
        try:
            return await call(asking, deadline_s=NOW_S, what=what)
        except (RayError, DeadlineExceeded):  # `metrics` says why
            return None

    async def _start(self, member: _Member) -> PoolReport:
        what = f"the sandbox pool of node {member.node[:8]}"
        starting = member.actor.start.options(concurrency_group=WATCH).remote(self._language)
        try:
            return await call(starting, deadline_s=START_S, what=f"{what} to start")
        except IsolationUnavailable as error:
            raise IsolationUnavailable(f"{error}\n  (node {member.node})") from error
        except ValueError as error:
            raise ValueError(f"{error} (node {member.node})") from error
        except (RayError, DeadlineExceeded) as error:
            raise RunStopped(f"{what} does not start: {error}") from error

    async def _report(self, member: _Member) -> PoolReport | None:
        what = f"the sandbox pool of node {member.node[:8]}"
        reporting = member.actor.report.options(concurrency_group=WATCH).remote()
        try:
            report = await call(reporting, deadline_s=REPORT_S, what=f"{what} to report")
        except DeadlineExceeded as error:
            log.warning("%s does not report: %s", what, error)
            self._missed(member, what)
            return None
        except (RayError, IsolationUnavailable) as error:  # dead, and started again by Ray; or refused: not silent
            log.warning("%s does not report: %s", what, error)
            report = None
        member.missed = 0
        return report

    def _missed(self, member: _Member, what: str) -> None:
        now = time.monotonic()
        member.silent_since = member.silent_since if member.missed else now
        member.missed += 1
        if member.missed >= SILENT_REPORTS and now - member.silent_since >= SILENT_S:
            log.warning("%s is restarted: silent for %.0f s", what, now - member.silent_since)
            self._restart_actor(member.actor)
            member.missed = 0


def _news(earlier: PoolReport | None, report: PoolReport) -> SandboxStats:
    """What a pool did since an earlier report, or in all its present life."""
    if earlier is not None and earlier.life == report.life:
        return report.stats.since(earlier.stats)
    return report.stats


def _sentence(node: str, reports: Sequence[PoolReport]) -> str:
    first = reports[0]
    why = f" (not higher: {first.why_not_higher})" if first.why_not_higher else ""
    return f"sandbox {first.level} on node {node[:8]}, {sum(report.slots for report in reports)} slots{why}"


def _shares(slots: int) -> list[int]:
    """A node's slots over as few pools as may be, evenly."""
    pools = math.ceil(slots / SLOTS_PER_POOL)
    return [slots // pools + (index < slots % pools) for index in range(pools)]


def _metrics(stats: SandboxStats, level: Level, elapsed_s: float, pool_restarts: int) -> dict[str, float]:
    metrics = {
        "sandbox/level": float(level.value.removeprefix("L")),
        "sandbox/slots": float(stats.slots),
        "sandbox/submissions": float(stats.submissions),
        "sandbox/jobs": float(stats.jobs),
        "sandbox/jobs_per_s": stats.jobs / max(elapsed_s, 1e-9),
        "sandbox/waiting": float(stats.waiting),
        "sandbox/restarts": float(stats.restarts),
        "sandbox/recycled": float(stats.recycled),
        "sandbox/retried": float(stats.retried),
        "sandbox/dropped": float(stats.dropped),
        "sandbox/refused": float(stats.refused),
        "sandbox/pool_restarts": float(pool_restarts),
    }
    if stats.slot_seconds > 0:
        metrics["sandbox/idle_frac"] = max(0.0, 1.0 - stats.busy_s / stats.slot_seconds)
    if asked := stats.submissions + stats.dropped:
        metrics["sandbox/infra_error_frac"] = stats.infra_errors / asked
    if stats.submissions:
        metrics["sandbox/queue_wait_mean_s"] = stats.queue_wait_s / stats.submissions
        metrics["sandbox/queue_wait_max_s"] = stats.queue_wait_max_s
        metrics["sandbox/queue_wait_p95_s"] = stats.queue_wait_p95_s
        metrics |= {f"sandbox/outcome/{name}": n / stats.submissions for name, n in stats.outcomes.items()}
    if stats.jobs:
        metrics["sandbox/cpu_s"] = stats.cpu_s / stats.jobs
        metrics["sandbox/wall_s"] = stats.wall_s / stats.jobs
    return metrics
