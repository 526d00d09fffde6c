"""Finds and ends the processes below one, however often they forked."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection

_POLL_S = 0.001


def descendants(pid: int, spared: Collection[int] = ()) -> list[int]:
    """Processes below `pid`, nearest first; without `spared` and what is below those. Zombies count."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spared:
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:  # it may be gone by now
            children[int(stat.read().rpartition(b")")[2].split()[1])].append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        waiting = [child for parent in waiting for child in children[parent]]
        found += waiting
    return found


def kill(pids: Collection[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_all_below(deadline_s: float, spared: Collection[int] = ()) -> list[int]:
    """Kill and reap every process below this one, which is a subreaper: what loses its parent becomes its child.

    Returns:
        The processes that did not end within `deadline_s`: the kernel holds them.
    """
    deadline = time.monotonic() + deadline_s
    while _reap() and (left := descendants(os.getpid(), spared)):
        if time.monotonic() > deadline:
            return left
        kill(left)
        time.sleep(_POLL_S)
    return []


def _reap() -> bool:
    """Take the status of every child that ended; whether there are others."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False
