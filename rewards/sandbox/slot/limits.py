"""Resource limits of one job."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

from funicular.rewards.sandbox.types import Limits

Plan = list[tuple[int, tuple[int, int]]]
"""Limits to set: which, and its soft and hard value."""

_FILES_OPEN = 64
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of one process. 0: not limited; for the stack: as it is."""

    address_space: int = 0
    """Bytes."""
    writable: int = 0
    """Bytes of private writable memory."""
    stack_mib: int = 0
    """Of the main thread, as far as the hard limit goes; it counts as memory only when used. Threads of this process
    keep the C library's default, which it read at its start; those of a program that is executed get as much."""


def plan(limits: Limits, memory: Memory, *, processes: int) -> Plan:
    """The limits of a job. Made before the fork: each page that a job touches must be copied for it.

    Args:
        processes: threads and processes of this user; 0: not limited.
    """
    cpu = math.ceil(limits.cpu_s) + 1
    wanted = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (limits.disk_mib * _MIB,) * 2,
        resource.RLIMIT_NOFILE: (_FILES_OPEN,) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    if processes:
        wanted[resource.RLIMIT_NPROC] = (processes,) * 2
    if memory.address_space:
        wanted[resource.RLIMIT_AS] = (memory.address_space,) * 2
    if memory.writable:
        wanted[resource.RLIMIT_DATA] = (memory.writable,) * 2
    if memory.stack_mib:
        wanted[resource.RLIMIT_STACK] = (memory.stack_mib * _MIB, resource.RLIM_INFINITY)
    return [(which, _allowed(which, *values)) for which, values in wanted.items()]


def _allowed(which: int, soft: int, hard: int) -> tuple[int, int]:
    """What we may set: no more than the hard limit that we have. Unlimited is -1, or larger than all."""
    _, inherited = resource.getrlimit(which)
    if inherited == resource.RLIM_INFINITY:
        return soft, hard
    hard = inherited if hard == resource.RLIM_INFINITY else min(hard, inherited)
    return min(soft, hard), hard


def apply(limits: Plan) -> None:
    """Limit this process and all that it starts.

    Raises:
        OSError, ValueError: a limit was refused.
    """
    for which, values in limits:
        resource.setrlimit(which, values)
