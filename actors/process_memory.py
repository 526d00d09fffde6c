"""Resident memory of processes, as the kernel counts it: pages that others map too count in each."""

from __future__ import annotations

import os
from pathlib import Path

_KIB = 1024


def largest_descendant(pid: int | None = None) -> int:
    """Peak so far of the process below `pid` (None: this one) that took the most, bytes; 0 without any."""
    return max((_peak(child) for child in _descendants(os.getpid() if pid is None else pid)), default=0)


def resident() -> int:
    """Of this process, now, bytes."""
    return _of("self", "VmRSS:")


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _peak(pid: int) -> int:
    return _of(str(pid), "VmHWM:")


def _of(process: str, what: str) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended meanwhile
        return 0
    lines = [line for line in status.splitlines() if line.startswith(what)]
    return int(lines[0].split()[1]) * _KIB if lines else 0  # one that is ending has no memory any more
