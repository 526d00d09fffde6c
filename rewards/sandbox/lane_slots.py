"""The slots of one lane, by role: started when first needed, replaced when they are worn or lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.stats import Recorder

log = logging.getLogger(__name__)

RSS_GROWTH = 2.0
"""A slot is worn when it holds this many times the memory it started with, and `RSS_SLACK_MIB` more."""
RSS_SLACK_MIB = 64.0


@dataclass(eq=False, slots=True)
class _Held:
    process: SlotProcess
    first_rss_mib: float
    first_jobs: int
    """Of the self-test."""


class LaneSlots:
    """At most one slot of each role. Used by one thread; only `kill` may be called from others.

    Args:
        start: starts a slot of a role for a lane.
        recycle_after: jobs after which a slot is worn.
    """

    def __init__(
        self, lane: int, start: Callable[[SlotRole, int], SlotProcess], recorder: Recorder, recycle_after: int
    ) -> None:
        self._lane = lane
        self._start = start
        self._recorder = recorder
        self._recycle_after = recycle_after
        self._held: dict[SlotRole, _Held] = {}
        self._past_jobs = 0

    def get(self, role: SlotRole) -> SlotProcess:
        """The lane's slot of a role; starts it first if there is none.

        Raises:
            SlotFailed: it could not be started, or the first of its role did not pass the self-test.
        """
        if role not in self._held:
            process = self._start(role, self._lane)
            self._held[role] = _Held(process, process.rss_mib(), process.jobs)
        return self._held[role].process

    @property
    def jobs(self) -> int:
        """Served by this lane so far, by slots that are gone too; without self-tests."""
        return self._past_jobs + sum(held.process.jobs - held.first_jobs for held in self._held.values())

    def recycle_worn(self) -> None:
        """End slots that served long enough or hold too much memory; the next `get` starts fresh ones."""
        for role, held in list(self._held.items()):
            if reason := self._worn(held):
                log.info("slot %s is recycled: %s", held.process.name, reason)
                self._recorder.count("recycled")
                self._end(role)

    def discard(self) -> None:
        """End all slots, because one of them cannot be trusted any more."""
        for role in list(self._held):
            self._recorder.count("restarts")
            self._end(role)

    def close(self) -> None:
        """End all slots."""
        for role in list(self._held):
            self._end(role)

    def kill(self) -> None:
        """Make whatever runs in the slots end now. From any thread; the lane still has to let go of them."""
        for held in list(self._held.values()):
            _kill(held.process)

    def _worn(self, held: _Held) -> str:
        process = held.process
        if process.worn:
            return "it says so"
        if process.jobs >= self._recycle_after:
            return f"{process.jobs} jobs"
        rss_mib = process.rss_mib()
        if rss_mib > RSS_GROWTH * held.first_rss_mib + RSS_SLACK_MIB:
            return f"{rss_mib:.0f} MiB, {held.first_rss_mib:.0f} at first"
        return ""

    def _end(self, role: SlotRole) -> None:
        held = self._held.pop(role)
        self._past_jobs += held.process.jobs - held.first_jobs
        _kill(held.process)


def _kill(process: SlotProcess) -> None:
    try:
        process.kill()
    except Exception:  # a process that the kernel does not let go: the lane goes on with another slot
        log.exception("slot %s does not end", process.name)
