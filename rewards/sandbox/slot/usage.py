"""What a job and all that it started use, together: no resource limit counts that.

Read from the outer /proc, of which the slot host keeps a descriptor when it enters its own root. Jobs do not get it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
_UTIME, _RSS = 11, 21
"""Positions in /proc/PID/stat, after the command; user, system, children's user and system time follow each other."""
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of all descendants of the slot host that live."""

    cpu_s: float = 0.0
    """With those of their children that they have waited for."""
    rss_mib: float = 0.0
    processes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            cpu_s=self.cpu_s + other.cpu_s,
            rss_mib=self.rss_mib + other.rss_mib,
            processes=self.processes + other.processes,
        )


class Descendants:
    """Made before the root is entered."""

    def __init__(self) -> None:
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def usage(self) -> Usage:
        """Now. Processes that end meanwhile count nothing; nor does anything where the kernel hides processes."""
        return sum((self._one(pid) for pid in self._pids()), Usage())

    def starved_s(self) -> float:
        """The longest that one of their threads was ready to run, and had no core; 0 where the kernel does not say."""
        waits = (
            self._read(f"{pid}/task/{thread}/schedstat").split()
            for pid in self._pids()
            for thread in self._threads(pid)
        )
        return max((int(fields[1]) / 1e9 for fields in waits if len(fields) > 1), default=0.0)

    def _pids(self) -> Iterator[str]:
        waiting = self._children("self")
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting += self._children(pid)

    def _one(self, pid: str) -> Usage:
        fields = self._read(f"{pid}/stat").rpartition(b")")[2].split()
        if len(fields) <= _RSS:
            return Usage()
        ticks = sum(int(field) for field in fields[_UTIME : _UTIME + 4])
        return Usage(cpu_s=ticks * _TICK_S, rss_mib=int(fields[_RSS]) * _PAGE_MIB, processes=1)

    def _children(self, pid: str) -> list[str]:
        threads = self._threads(pid)
        return [c for thread in threads for c in self._read(f"{pid}/task/{thread}/children").decode().split()]

    def _threads(self, pid: str) -> list[str]:
        try:
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return []
        try:
            return os.listdir(folder)
        except OSError:
            return []
        finally:
            os.close(folder)

    def _read(self, path: str) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return b""
        try:
            return os.read(fd, _MOST_BYTES)
        except OSError:
            return b""
        finally:
            os.close(fd)
