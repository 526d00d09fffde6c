"""Level L3: a root of its own, in namespaces of its own; see `namespaces.py`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from funicular.rewards.sandbox.slot import kernel, limits, namespaces
from funicular.rewards.sandbox.slot.child import Ground
from funicular.rewards.sandbox.slot.namespaces import INPUT, JOB_UID, WORK
from funicular.rewards.sandbox.slot.native import NativePrograms
from funicular.rewards.sandbox.slot.place import MemoryGauge, python_memory, rules, walls
from funicular.rewards.sandbox.slot.stdin import write_all
from funicular.rewards.sandbox.slot.usage import Descendants
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Level, Limits, Outcome

_STDIN_PATH = b"/dev/stdin"
_PROGRAM_MIB, _PROCESS_MIB = 64, 8
"""What a program with its libraries takes, and what each process more shares with the others and is counted again."""
_OTHERS_OF_OUR_USER = 2
"""Without a user id of its own, a job shares ours: this process, and the one that waits outside for it."""


class NamespacePlace:
    """See `Place`."""

    def __init__(
        self, gauge: MemoryGauge, native: NativePrograms | None, descendants: Descendants, *, own_user: bool
    ) -> None:
        """Prepare; the namespaces are entered already.

        Args:
            native: jobs execute programs; None: they are Python, in the process that was forked.
            descendants: made before the root was entered.
            own_user: jobs have a user id that we have not.
        """
        if os.getpid() != 1:  # `kill_all` would be a catastrophe
            raise RuntimeError(f"this process is {os.getpid()}, not the first of a pid namespace")
        self._gauge = gauge
        self._native = native
        self._descendants = descendants
        self._others = 0 if own_user else _OTHERS_OF_OUR_USER
        self._walls = walls(Level.L3, native=native is not None, own_uid=JOB_UID if own_user else None)
        self._rules: int | None = None
        self._disk_mib = 0
        self._input_used = False
        self.counts_denied = self._walls.notify
        self.handoff, self._jobs_handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def prepare(self, work: Work) -> Ground:
        if self._disk_mib != work.limits.disk_mib:
            self._mount(work.limits.disk_mib)
        if self._native is None:
            memory = python_memory(self._gauge, work.limits)
        else:
            self._write_input(self._native.source_file(work), work.source)
            memory = self._native.memory(work)
        if self._native is not None or work.mentions(_STDIN_PATH):
            self._write_input("stdin", work.stdin)
        return Ground(
            walls=self._walls,
            folder=WORK,
            rules_fd=self._rules,
            host_pid=os.getpid(),
            handoff=self._jobs_handoff,
            limits=limits.plan(work.limits, memory, processes=work.limits.processes + self._others),
        )

    def argv(self, work: Work) -> list[str] | None:
        return None if self._native is None else self._native.argv(work)

    def needs_compiling(self, work: Work) -> bool:
        return self._native is not None and self._native.needs_compiling(work)

    def keep(self, work: Work) -> str:
        return "" if self._native is None else self._native.keep(work)

    def excess_of(self, pid: int, bounds: Limits) -> Callable[[], Outcome | None]:
        if self._native is None:
            return _nothing

        def excess() -> Outcome | None:
            usage = self._descendants.usage()
            if usage.cpu_s > bounds.cpu_s:
                return Outcome.CPU
            if usage.processes > bounds.processes + self._others:
                return Outcome.FORBIDDEN  # the kernel does not limit them if our user is the machine's root
            fair = bounds.memory_mib + _PROGRAM_MIB + _PROCESS_MIB * usage.processes
            return Outcome.MEMORY if usage.rss_mib > fair else None

        return excess

    def starved_s(self) -> float:
        return self._descendants.starved_s()

    def kill_all(self) -> None:
        try:
            os.kill(-1, signal.SIGKILL)  # as PID 1: everything in our namespace but us
        except ProcessLookupError:
            return

    def disk_is_full(self) -> bool:
        return os.statvfs(WORK).f_bfree == 0

    def leave(self) -> None:
        self.kill_all()  # what is mounted goes with this process

    def clean(self) -> bool:
        if self._input_used:
            for name in os.listdir(INPUT):
                os.unlink(f"{INPUT}/{name}")
            self._input_used = False
        state = os.statvfs(WORK)
        if state.f_files - state.f_ffree > 1 or state.f_blocks != state.f_bfree:
            self._mount(self._disk_mib)
        return False

    def _mount(self, disk_mib: int) -> None:
        """An empty working folder. Landlock's rules name the folder itself, so they are made anew too."""
        if self._disk_mib:
            kernel.unmount(WORK)
            self._disk_mib = 0
        if self._rules is not None:
            os.close(self._rules)
        namespaces.mount_work(disk_mib, executable=self._native is not None)
        self._rules = rules(["/"], WORK, native=self._native is not None)
        self._disk_mib = disk_mib

    def _write_input(self, name: str, data: memoryview) -> None:
        fd = os.open(f"{INPUT}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        self._input_used = True


def _nothing() -> None:
    return None
