"""Level L1: one private folder, guarded by Landlock, the seccomp filter, and the slot host's watching."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from funicular.rewards.sandbox.slot import cleaning, limits
from funicular.rewards.sandbox.slot.child import Ground
from funicular.rewards.sandbox.slot.place import MemoryGauge, python_memory, rules, walls
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Level, Limits, Outcome

WORK, CANARY_PATH = "work", "tests/expected_output.json"
"""Inside the slot's folder."""
_CLEANING_S = 1.0
_MOST_ENTRIES = 4000
"""Files and folders that a job may leave at any moment; the kernel has no limit for it."""
_DISK_SLACK = 2.0
"""The limit is per file; all files together may be this many times larger."""


class FolderPlace:
    """See `Place`."""

    def __init__(self, folder: str, readable: list[str], gauge: MemoryGauge, *, own_user: bool) -> None:
        """Prepare.

        Args:
            folder: absolute; holds WORK and the canary.
            readable: what a job may read besides.
            own_user: nobody else has our user id, so the kernel can count the job's threads.
        """
        self._folder = folder
        self._work = f"{folder}/{WORK}"
        self._readable = [*readable, f"{folder}/{os.path.dirname(CANARY_PATH)}"]
        self._gauge = gauge
        self._own_user = own_user
        self._walls = walls(Level.L1, native=False, own_uid=None)
        self._rules = rules(self._readable, self._work, native=False)
        if self._rules is None:
            raise OSError("the kernel has no Landlock")
        self._asides = 0
        self.counts_denied = self._walls.notify
        self.handoff, self._jobs_handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def prepare(self, work: Work) -> Ground:
        memory = python_memory(self._gauge, work.limits)
        # among other processes of our user's the kernel cannot count a job's threads: `excess_of` does
        return Ground(
            walls=self._walls,
            folder=self._work,
            rules_fd=self._rules,
            host_pid=os.getpid(),
            handoff=self._jobs_handoff,
            limits=limits.plan(work.limits, memory, processes=work.limits.processes + 1 if self._own_user else 0),
        )

    def argv(self, work: Work) -> list[str] | None:
        return None

    def needs_compiling(self, work: Work) -> bool:
        return False

    def keep(self, work: Work) -> str:
        return ""

    def excess_of(self, pid: int, bounds: Limits) -> Callable[[], Outcome | None]:
        def excess() -> Outcome | None:
            if cleaning.mib_used(self._work, _MOST_ENTRIES) > _DISK_SLACK * bounds.disk_mib:
                return Outcome.OUTPUT
            return Outcome.FORBIDDEN if _threads(pid) > bounds.processes else None

        return excess

    def kill_all(self) -> None:
        """It had no way to start anything but threads."""

    def disk_is_full(self) -> bool:
        return False

    def clean(self) -> bool:
        try:
            cleaning.empty(self._work, _CLEANING_S)
        except (cleaning.TooMuch, OSError):
            # out of the next job's sight and reach; the owner removes it with the slot
            self._asides += 1
            os.rename(self._work, f"{self._folder}/aside-{self._asides}")
            os.mkdir(self._work, 0o700)
            if self._rules is not None:
                os.close(self._rules)
            self._rules = rules(self._readable, self._work, native=False)
            return True
        return False


def _threads(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except FileNotFoundError:
        return 0
