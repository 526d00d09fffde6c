"""What a job's process does to itself before it runs judged code: it gives up everything, for good."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from funicular.rewards.sandbox.slot import kernel, landlock
from funicular.rewards.sandbox.slot.seccomp import Filter

STARTED, FAILED = b"+", b"-"
"""First byte of what a job says on the handoff socket; after FAILED follows what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """What all jobs of a slot have in common; made once."""

    job_filter: Filter
    sealing_filter: Filter
    notify: bool
    """Denied calls are announced to the slot host."""
    own_uid: int | None
    """User id that jobs change to; None: they stay what the slot host is."""


def confine(walls: Walls, *, rules_fd: int | None, host_pid: int, handoff: socket.socket) -> None:
    """Confine this process. Afterwards it may run judged code.

    Args:
        rules_fd: Landlock rules; None: the kernel has no Landlock.
        host_pid: our parent, as we see it.
        handoff: where the slot host waits for the listener.

    Raises:
        OSError: the kernel refused something. The process must not run judged code then.
    """
    if walls.own_uid is not None:
        os.setgroups([])
        os.setresgid(walls.own_uid, walls.own_uid, walls.own_uid)
        os.setresuid(walls.own_uid, walls.own_uid, walls.own_uid)
    kernel.drop_capabilities()
    # after the change of user, which clears it
    kernel.prctl(kernel.PR_SET_PDEATHSIG, kernel.SIGKILL)
    if os.getppid() != host_pid:
        os._exit(1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if rules_fd is not None:
        landlock.restrict(rules_fd)
    listener = walls.job_filter.install(listener=walls.notify)
    if walls.notify:
        socket.send_fds(handoff, [STARTED], [listener])
        os.close(listener)
    else:
        handoff.sendmsg([STARTED])
    walls.sealing_filter.install(listener=False)
