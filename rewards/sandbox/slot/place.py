"""Where the jobs of a slot run: what differs between a slot with namespaces (L3) and one without (L1)."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from funicular.rewards.sandbox.slot import landlock, policy, seccomp
from funicular.rewards.sandbox.slot.child import Ground
from funicular.rewards.sandbox.slot.confinement import Walls
from funicular.rewards.sandbox.slot.limits import Memory
from funicular.rewards.sandbox.slot.syscalls import this_machine
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Level, Limits, Outcome

_PYTHON_STACK_MIB = 512
"""Deep recursion is no crime, and a program that needs less does not pay for it."""
_VM_SIZE_PAGES = re.compile(rb"(\d+) (\d+)")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Place(Protocol):
    """Made once, when a slot starts."""

    handoff: socket.socket
    """The slot host's end of the socket on which a job says that it is confined."""
    counts_denied: bool
    """Whether this kernel announces denied calls."""

    def prepare(self, work: Work) -> Ground:
        """Make everything ready for one job."""

    def argv(self, work: Work) -> list[str] | None:
        """The program that the job executes; None: Python, in the process that was forked."""

    def needs_compiling(self, work: Work) -> bool:
        """The job's program must be compiled first."""

    def keep(self, work: Work) -> str:
        """After a compilation: keep the program. Returns why there is none; empty: it is kept."""

    def excess_of(self, pid: int, bounds: Limits) -> Callable[[], Outcome | None]:
        """Asked now and then while the job runs: does it use more than its limits of what only we can count?"""

    def starved_s(self) -> float:
        """How long the job that runs was ready to run and had no core."""

    def kill_all(self) -> None:
        """Kill whatever the job started."""

    def disk_is_full(self) -> bool:
        """The job has filled its working folder."""

    def leave(self) -> None:
        """The owner is gone: leave nothing behind."""

    def clean(self) -> bool:
        """Remove what the job left. Returns whether the slot is worn and should be replaced."""


def walls(level: Level, *, native: bool, own_uid: int | None) -> Walls:
    """The walls of a slot at `level`."""
    machine = this_machine()
    notify = seccomp.can_notify()
    return Walls(
        job_filter=policy.job_filter(machine, level, native=native, notify=notify),
        sealing_filter=policy.sealing_filter(machine),
        notify=notify,
        own_uid=own_uid,
    )


def rules(readable: list[str], writable: str, *, native: bool, listable: Sequence[str] = ()) -> int | None:
    """Landlock's rules for a job; None: the kernel has no Landlock."""
    if not landlock.abi():
        return None
    execute = landlock.EXECUTE if native else 0
    devices = [(f"/dev/{name}", landlock.READ_FILE | landlock.WRITE_FILE) for name in ("null", "zero")]
    return landlock.ruleset(
        [
            *((path, landlock.READ | execute) for path in readable),
            *((path, landlock.READ_DIR) for path in listable),
            *devices,
            ("/dev/urandom", landlock.READ_FILE),
            (writable, landlock.READ_WRITE | execute),
        ]
    )


class MemoryGauge:
    """How much memory the slot host itself uses; /proc need not be there any more when it is asked."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def _read(self) -> tuple[int, int]:
        match = _VM_SIZE_PAGES.match(os.pread(self._statm, 100, 0))
        if match is None:
            raise ValueError("/proc/self/statm does not begin with two numbers")
        return int(match[1]) * _PAGE, int(match[2]) * _PAGE

    def mapped(self) -> int:
        """Bytes of address space."""
        return self._read()[0]

    def resident(self) -> int:
        """Bytes in memory, shared ones included."""
        return self._read()[1]


def python_memory(gauge: MemoryGauge, limits: Limits) -> Memory:
    """Of a job that goes on in the interpreter that was forked: what that maps comes on top."""
    address_space = gauge.mapped() + (limits.memory_mib << 20)
    return Memory(address_space=address_space, stack_mib=_PYTHON_STACK_MIB)
