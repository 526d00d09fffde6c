"""Slots for tests of the kernel side: real ones, at each level that this machine's kernel allows."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from funicular.rewards.sandbox.slot import landlock
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.types import JobReport, Level, Limits

QUICK = Limits(cpu_s=3.0, memory_mib=128, processes=16, output_kib=64, disk_mib=4)
LEVELS = [Level.L3, Level.L1]
_ASK_FOR_NAMESPACES = """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.unshare(0x10000000 | 0x00020000) == 0
assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
"""


def skip_unless_possible(level: Level | None = None) -> None:
    """Skip where the kernel has not what the level is made of, or any level; that a slot does not start is no reason to
    skip."""
    lacking = [_lacking(one) for one in (LEVELS if level is None else [level])]
    if all(lacking):
        pytest.skip("; ".join(lacking))


@functools.cache
def _lacking(level: Level) -> str:
    """What the kernel has not; empty: nothing."""
    if level is Level.L1:
        return "" if landlock.abi() else "this kernel has no Landlock"
    asked = subprocess.run([sys.executable, "-c", _ASK_FOR_NAMESPACES], capture_output=True)
    return "this machine does not allow user namespaces with mounts" if asked.returncode else ""


def best_possible_level() -> Level:
    """That the kernel allows; skips where there is none."""
    skip_unless_possible()
    return next(level for level in LEVELS if not _lacking(level))


def slot_of(
    role: SlotRole, level: Level, number: int = 0, preload: Sequence[str] = ("threading", "traceback")
) -> Iterator[SlotProcess]:
    """For fixtures."""
    skip_unless_possible(level)
    slot = SlotProcess(role=role, level=level, name=f"test-{role}", slot_number=number, preload=preload)
    yield slot
    slot.kill()


def run(slot: SlotProcess, source: str, stdin: str = "", limits: Limits = QUICK) -> JobReport:
    """Run Python."""
    return slot.run(Job(kind=JobKind.PROGRAM, source=source.encode(), stdin=stdin.encode(), limits=limits))


def run_native(slot: SlotProcess, language: str, source: str, stdin: str = "", limits: Limits = QUICK) -> JobReport:
    """Run a program in another language."""
    options = {"language": language}
    job = Job(kind=JobKind.EXEC, source=source.encode(), stdin=stdin.encode(), limits=limits, options=options)
    return slot.run(job)


def below(root: int) -> set[int]:
    """Living processes that `root` started, and those that they started."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(name)] = int(parent)
    found, todo = set(), [root]
    while todo:
        above = todo.pop()
        children = {pid for pid, parent in parents.items() if parent == above}
        found |= children
        todo += children
    return found
