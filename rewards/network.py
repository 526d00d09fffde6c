"""Takes the network from a process and all that it starts, for good: a seccomp filter on socket().

It keeps honest code from reaching the network unasked, which would make rewards depend on it. It does not hold
hostile code; that is the sandbox's part.
"""

from __future__ import annotations

import errno
import socket

from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.slot.seccomp import ALLOW, Filter, assemble, deny, one_of
from funicular.rewards.sandbox.slot.syscalls import this_machine

HINT = "reward code has no network unless reward.network names the function"


def deny_network() -> None:
    """From now on, in this process and its descendants, only Unix sockets can be made; others raise
    PermissionError.

    Raises:
        OSError: the kernel takes no filter, or there is no table of its system calls.
    """
    rules = {
        "socket": one_of(0, [socket.AF_UNIX], otherwise=deny(errno.EPERM)),
        "io_uring_setup": deny(errno.ENOSYS),  # it could make sockets without socket()
    }
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    Filter(assemble(rules, this_machine(), ALLOW)).install(listener=False)


def was_denied(error: BaseException) -> bool:
    """Whether an exception, or what caused it, looks like the work of `deny_network`."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, socket.gaierror) or (isinstance(error, PermissionError) and error.errno == errno.EPERM):
            return True
        error = error.__cause__ or error.__context__ or error
    return False
