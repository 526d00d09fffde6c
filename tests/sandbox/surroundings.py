"""What a sandbox must leave as it was: processes, descriptors, threads, files. Linux only, standard library only."""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.sandbox.programs import LEFTOVER

_PR_SET_CHILD_SUBREAPER = 36
_DROPPED = ("conftest.py", "pytest.ini", "sitecustomize.py", "usercustomize.py", "solution.py", "test_solution.py")
"""Other names of files that hostile programs try to write outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Counts of what this process holds and has started; idle, they must not change."""

    processes: int
    """Started by it or by what it started, alive."""
    zombies: int
    """Its own children that ended and were not waited for."""
    descriptors: int
    threads: int
    rss_mib: float
    slots_rss_mib: float
    """Of all processes that it started."""

    def holds_no_more_than(self, before: Surroundings) -> bool:
        """True if nothing that is counted is left over from what ran since `before`."""
        return (
            self.processes <= before.processes
            and self.descriptors <= before.descriptors
            and self.threads <= before.threads
            and self.zombies == 0
        )

    def as_dict(self) -> dict[str, float]:
        """For a report."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    state: str
    rss_pages: int
    name: str


def become_reaper() -> None:
    """Orphans among the descendants of this process become its children, so that none gets out of sight.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> list[_Process]:
    """All processes below `root`, zombies too."""
    children: dict[int, list[_Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [process.pid for process in below]
    return found


def survivors(root: int) -> list[str]:
    """Processes below `root` that are alive, for people."""
    return [f"{process.pid} {process.name}" for process in descendants(root) if process.state != "Z"]


def look(reaper: int) -> Surroundings:
    """What this process, whose orphans go to `reaper`, holds now."""
    own = os.getpid()
    others = [process for process in descendants(reaper) if process.pid != own]
    alive = [process for process in others if process.state != "Z"]
    page_mib = os.sysconf("SC_PAGESIZE") / 2**20
    return Surroundings(
        processes=len(alive),
        zombies=sum(process.state == "Z" and process.parent == own for process in others),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        rss_mib=int(Path("/proc/self/statm").read_text().split()[1]) * page_mib,
        slots_rss_mib=sum(process.rss_pages for process in alive) * page_mib,
    )


def look_until(reaper: int, calm: Callable[[Surroundings], bool], deadline_s: float = 10.0) -> Surroundings:
    """Look until it is calm or the deadline has passed.

    A process that was killed is gone a moment later, and so is a thread: `Thread.join` returns before the kernel's
    thread has ended.
    """
    end = time.monotonic() + deadline_s
    while not calm(seen := look(reaper)) and time.monotonic() < end:
        time.sleep(0.01)
    return seen


def left_files(own_folder: Path) -> list[str]:
    """Files that programs of the suites left outside the sandbox: by name anywhere, of any name in `own_folder`."""
    import json

    folders = {Path("/"), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"), Path("/etc"), Path("/usr")}
    folders |= {Path.home(), Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))}
    stdlib = Path(os.__file__).parent
    folders |= {stdlib, stdlib / "__pycache__", Path(json.__file__).parent}
    found = [str(path) for path in own_folder.rglob("*")]
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found += [str(folder / name) for name in names if name.startswith(LEFTOVER)]
        if folder in (Path("/"), Path("/tmp"), Path("/var/tmp")):
            found += [str(folder / name) for name in names if name in _DROPPED]
    return found


def _processes() -> list[_Process]:
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        found.append(
            _Process(pid=int(entry), parent=int(fields[1]), state=fields[0], rss_pages=int(fields[21]), name=name)
        )
    return found
