"""Level L1: one private folder, guarded by Landlock, the seccomp filter, and the slot host's watching."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from funicular.rewards.sandbox.slot import cleaning, limits, visible
from funicular.rewards.sandbox.slot.child import Ground
from funicular.rewards.sandbox.slot.place import MemoryGauge, python_memory, rules, walls
from funicular.rewards.sandbox.slot.usage import Descendants
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Level, Limits, Outcome

WORK, CANARY_PATH = "work", "tests/expected_output.json"
"""Inside the slot's folder."""
_CLEANING_S, _LEAVING_S = 1.0, 30.0
_MOST_ENTRIES = 4000
"""Files and folders that a job may leave at any moment; the kernel has no limit for it."""
_DISK_SLACK = 2.0
"""The limit is per file; all files together may be this many times larger."""


class FolderPlace:
    """See `Place`."""

    def __init__(
        self,
        folder: str,
        shown: Sequence[str],
        packages: Sequence[str],
        gauge: MemoryGauge,
        descendants: Descendants,
        *,
        own_user: bool,
    ) -> None:
        """Prepare.

        Args:
            folder: absolute; holds WORK and the canary.
            shown: what a job may read besides, but for third-party packages in it.
            packages: of these, those that it may read.
            descendants: the jobs, one at a time.
            own_user: nobody else has our user id, so the kernel can count the job's threads.
        """
        self._folder = folder
        self._work = f"{folder}/{WORK}"
        hidden = visible.third_party_folders(shown)
        granted = [visible.around(path, hidden) for path in shown if os.path.isdir(path)]
        self._readable = [*packages, f"{folder}/{os.path.dirname(CANARY_PATH)}", *(p for r, _ in granted for p in r)]
        self._listable = [p for _, listable in granted for p in listable]
        self._gauge = gauge
        self._descendants = descendants
        self._own_user = own_user
        self._walls = walls(Level.L1, native=False, own_uid=None)
        self._rules = self._make_rules()
        if self._rules is None:
            raise OSError("the kernel has no Landlock")
        self._asides = 0
        self.counts_denied = self._walls.notify
        self.handoff, self._jobs_handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def _make_rules(self) -> int | None:
        return rules(self._readable, self._work, native=False, listable=self._listable)

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

    def starved_s(self) -> float:
        return self._descendants.starved_s()

    def kill_all(self) -> None:
        """It had no way to start anything but threads."""

    def disk_is_full(self) -> bool:
        return False

    def leave(self) -> None:
        with suppress(cleaning.TooMuch, OSError):  # there is nobody to tell
            cleaning.empty(self._folder, _LEAVING_S)
            os.rmdir(self._folder)

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
            self._rules = self._make_rules()
            return True
        return False


def _threads(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except FileNotFoundError:
        return 0
