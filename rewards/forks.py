"""One piece of work in a fork that is certain to end: limits of CPU time, wall time and memory.

The process that forks is warm: it has loaded what the work needs, so that a fork is ready in milliseconds and a
hang costs only itself. It must be a subreaper (`become_subreaper`), so that nothing a fork started outlives it.
The work is trusted to be honest; what is not goes to the sandbox.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from funicular.rewards import processes
from funicular.rewards.channel import HEADER
from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.types import Limits

MAX_BYTES = 8 << 20
"""Of all that one fork may say."""
_PR_SET_CHILD_SUBREAPER = 36
_CPU_CLOCK_OF_PROCESS = 2
_POLL_S = 0.1
_END_DEADLINE_S = 5.0
_EXIT_MEMORY = 99

Send = Callable[[bytes], None]
Work = Callable[[Send], None]


def wall_s(cpu_s: float) -> float:
    """Seconds of wall time that go with a limit of CPU time: the sandbox's rule."""
    return Limits(cpu_s=cpu_s).wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkLimits:
    """What one fork may use."""

    cpu_s: Sequence[float]
    """For each answer that the work sends, in order. All threads together, without processes that the work starts."""
    wall_s: Sequence[float]
    """For each answer, too."""
    memory_mib: int
    """Address space beyond what the fork begins with."""

    @property
    def frames(self) -> int:
        """How many answers the work sends."""
        return len(self.cpu_s)


class Ending(StrEnum):
    """How a fork ended."""

    DONE = "done"
    """All answers came."""
    CPU = "cpu"
    WALL = "wall"
    MEMORY = "memory"
    DIED = "died"
    """It exited, crashed or said too much before its last answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkReport:
    """What came of a fork."""

    frames: Sequence[bytes]
    """The answers that came, in order; all of them only if it is done."""
    ending: Ending
    message: str = ""
    """For people: which limit, which exit code."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that started it ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def become_subreaper() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def run_forked(
    work: Work, limits: ForkLimits, *, private: Collection[int] = (), spared: Collection[int] = ()
) -> ForkReport:
    """Do `work` in a fork, and end the fork and all that it started.

    Args:
        work: sends its `limits.frames` answers, each with one call; it must not return before the last.
        private: descriptors that the fork must not have.
        spared: children of this process, from before, that live on.
    """
    receiving, sending = os.pipe()
    parent, mapped_bytes = os.getpid(), _mapped_bytes()
    pid = os.fork()
    if pid == 0:
        _be_fork(work, limits, sending, parent, (*private, receiving), mapped_bytes)
    os.close(sending)
    os.set_blocking(receiving, False)
    pidfd = os.pidfd_open(pid)
    frames = _Frames(receiving, limits.frames)
    ending = Ending.DIED
    try:
        ending = _watch(pid, pidfd, frames, limits)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it leads no group yet
            os.killpg(pid, signal.SIGKILL)
        processes.kill([pid])
        _, wait_status, usage = os.wait4(pid, 0)  # behind this wait stands the deadline of who asked us
        os.close(receiving)
        os.close(pidfd)
        for left in processes.end_all_below(_END_DEADLINE_S, spared):
            print(f"process {left}, started by a reward function, does not end", file=sys.stderr, flush=True)
    status = os.waitstatus_to_exitcode(wait_status)
    if ending is Ending.DIED and _memory_killed(status, usage, limits):
        ending = Ending.MEMORY
    return ForkReport(frames=frames.complete, ending=ending, message=_message(ending, limits, frames, status))


class _Frames:
    """The answers of a fork, as they come."""

    def __init__(self, descriptor: int, count: int) -> None:
        self._descriptor = descriptor
        self._count = count
        self._pending = bytearray()
        self._bytes = 0
        self._closed = False
        self.complete: list[bytes] = []
        self.error = ""

    @property
    def wanted(self) -> bool:
        """Whether answers are missing that may still come."""
        return not self._closed and not self.error and len(self.complete) < self._count

    @property
    def missing(self) -> bool:
        """Whether answers are missing."""
        return len(self.complete) < self._count

    def read(self) -> bool:
        """Take what is there; False when there is nothing, now or ever."""
        try:
            piece = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return False
        self._closed = not piece
        self._bytes += len(piece)
        self._pending += piece
        while len(self._pending) >= HEADER.size and self.wanted:
            (length,) = HEADER.unpack_from(self._pending)
            if max(length, self._bytes) > MAX_BYTES:
                self.error = f"it announced an answer of {length} bytes, at most {MAX_BYTES} allowed"
                return False
            end = HEADER.size + length
            if len(self._pending) < end:
                break
            self.complete.append(bytes(self._pending[HEADER.size : end]))
            del self._pending[:end]
        return bool(piece)


def _watch(pid: int, pidfd: int, frames: _Frames, limits: ForkLimits) -> Ending:
    """Wait for the answers, for the end of the fork, or for a limit of time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(frames._descriptor, select.POLLIN)
    answers, cpu_before, started = 0, 0.0, time.monotonic()
    while frames.wanted:
        if answers < len(frames.complete):
            answers, cpu_before, started = len(frames.complete), _cpu_s(pid), time.monotonic()
        cpu_left = limits.cpu_s[answers] - (_cpu_s(pid) - cpu_before)
        wall_left = limits.wall_s[answers] - (time.monotonic() - started)
        if cpu_left <= 0 or wall_left <= 0:
            return Ending.CPU if cpu_left <= 0 else Ending.WALL
        events = dict(poll.poll(1 + 1000 * min(cpu_left, wall_left, _POLL_S)))
        while frames.wanted and frames.read():
            pass
        if pidfd in events:  # the end of the pipe may not come: a process that it forked may hold it
            break
    return Ending.DIED if frames.missing else Ending.DONE


def _memory_killed(status: int, usage: resource.struct_rusage, limits: ForkLimits) -> bool:
    """Whether it gave up with a MemoryError, or was killed, by the kernel then, when it had grown large."""
    grown_kib = usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return status == _EXIT_MEMORY or (status == -signal.SIGKILL and grown_kib > limits.memory_mib << 9)


def _message(ending: Ending, limits: ForkLimits, frames: _Frames, status: int) -> str:
    answers = len(frames.complete)
    if ending is Ending.CPU:
        return f"no answer in {limits.cpu_s[answers]:g} s of CPU time"
    if ending is Ending.WALL:
        unused = f"{limits.cpu_s[answers]:g} s of CPU time were allowed, not used"
        return f"no answer in {limits.wall_s[answers]:g} s ({unused})"
    if ending is Ending.MEMORY:
        return f"out of memory: it needs more than {limits.memory_mib} MiB (reward.memory_mib)"
    if ending is Ending.DIED:
        return f"the reward process died (exit code {status}) {frames.error}".rstrip()
    return ""


def _be_fork(
    work: Work, limits: ForkLimits, sending: int, parent: int, private: Collection[int], mapped_bytes: int
) -> NoReturn:
    status = 1
    try:
        os.setsid()
        die_with(parent)
        for descriptor in private:
            os.close(descriptor)
        _be_the_first_to_be_killed()
        _limit_memory(mapped_bytes + (limits.memory_mib << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work(lambda answer: _send(sending, answer))
        status = 0
    except MemoryError:
        status = _EXIT_MEMORY
    except BaseException:  # the fork must never go on as a second copy of what it was forked from
        traceback.print_exc()
    finally:
        os._exit(status)


def _be_the_first_to_be_killed() -> None:
    """Where the machine's memory runs out. Not with `open`: its buffers touch 60 pages that forks else share."""
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(score, b"1000")
    os.close(score)


def _send(descriptor: int, answer: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):  # after the last answer the fork is killed
        with contextlib.suppress(ValueError, AttributeError):  # the function may have closed or replaced it
            stream.flush()
    unsent = memoryview(HEADER.pack(len(answer)) + answer)
    while unsent:
        unsent = unsent[os.write(descriptor, unsent) :]


def _limit_memory(allowed_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or allowed_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (allowed_bytes, hard))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _cpu_s(pid: int) -> float:
    """CPU seconds of another process, all its threads: clock_getcpuclockid(3) as Linux computes it."""
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
