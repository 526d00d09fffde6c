"""All sandbox pools of a run: started on every node before anything expensive, and what they report each step."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from funicular.actors.errors import RunStopped
from funicular.actors.sandbox_pool import WATCH, PoolReport
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.rewards.sandbox.isolation import IsolationUnavailable, below
from funicular.rewards.sandbox.stats import SandboxStats
from funicular.rewards.sandbox.types import Level

log = logging.getLogger(__name__)

START_S = 300.0
"""Seconds for a pool's process and all its slots to start."""
REPORT_S = 10.0
SILENT_REPORTS, SILENT_S = 3, START_S
"""A pool that misses so many reports in a row, over at least so many seconds, hangs and is replaced. Slots that start
on a busy node take long too, and must be let."""
SLOTS_PER_POOL = 16
"""A pool is one Python process, which spends 0.8 ms on a job of some 6 ms: that bounds the slots it keeps busy."""


@dataclass(eq=False)
class _Member:
    node: str
    actor: Any
    report: PoolReport | None = None
    """The last one; None before the start."""
    missed: int = 0
    """Reports in a row."""
    silent_since: float = 0.0
    """When it missed the first of them."""


class SandboxPools:
    """One pool per node; several where a node has more than `SLOTS_PER_POOL` slots.

    Args:
        make_actor: starts the Ray actor of a pool on a node, given the node's id and the pool's slots, at most.
        nodes: node id to the slots on it, at most.
        restart_actor: ends an actor at once, for Ray to start it again under the same handle, up to its max_restarts.
    """

    def __init__(
        self,
        make_actor: Callable[[str, int], Any],
        nodes: Mapping[str, int],
        *,
        restart_actor: Callable[[Any], None] = lambda actor: ray.kill(actor, no_restart=False),
    ) -> None:
        self._members = [
            _Member(node, make_actor(node, share)) for node, slots in nodes.items() for share in _shares(slots)
        ]
        self._restart_actor = restart_actor
        self._restarts = 0
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
        reports = await asyncio.gather(*(self._start(member, language) for member in self._members))
        self._read_at = time.monotonic()
        by_node: dict[str, list[PoolReport]] = {}
        for member, report in zip(self._members, reports, strict=True):
            member.report = report
            by_node.setdefault(member.node, []).append(report)
        return [
            f"sandbox {on_node[0].level} on node {node[:8]}, {sum(report.slots for report in on_node)} slots"
            + (f" (not higher: {on_node[0].why_not_higher})" if on_node[0].why_not_higher else "")
            for node, on_node in by_node.items()
        ]

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call, over all pools that answer; a silent pool must not stop a run."""
        reports = await asyncio.gather(*(self._report(member) for member in self._members))
        now = time.monotonic()
        elapsed_s, self._read_at = now - self._read_at, now
        total: SandboxStats | None = None
        lowest = Level.L3
        for member, report in zip(self._members, reports, strict=True):
            if report is None:
                continue
            stats = report.stats
            if member.report and member.report.life == report.life:
                stats = stats.since(member.report.stats)
            elif member.report:
                self._restarts += 1
            member.report = report
            lowest = report.level if below(report.level, lowest) else lowest
            total = total.plus(stats) if total else stats
        return _metrics(total, lowest, elapsed_s, self._restarts) if total else {}

    async def _start(self, member: _Member, language: str) -> PoolReport:
        what = f"the sandbox pool of node {member.node[:8]}"
        starting = member.actor.start.options(concurrency_group=WATCH).remote(language)
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
