"""One job from start to report, as the slot host sees it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funicular.rewards.sandbox.slot import child, stdin
from funicular.rewards.sandbox.slot.place import Place
from funicular.rewards.sandbox.slot.syscalls import this_machine
from funicular.rewards.sandbox.slot.watch import Stream, Watch
from funicular.rewards.sandbox.slot.wire import EXIT_MEMORY, JobKind
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Limits, Outcome

_STDERR_BYTES = 64 << 10
_RESULT_BYTES = 4 << 20
_MACHINE = this_machine()
_NATIVE = (JobKind.COMPILE, JobKind.EXEC)
_PYTHON = (JobKind.PROGRAM, JobKind.SERVE, JobKind.TESTER)
_PROGRAM_OWN_MIB = 64
"""Of a program with its libraries, or of V8; not the job's memory."""
_OUT_OF_MEMORY = (b"std::bad_alloc", b"heap out of memory")


class JobLost(RuntimeError):
    """The job could not be confined or started; no judged code ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a process ended."""

    status: int
    """Exit status, or minus the signal's number."""
    cpu_s: float
    peak_rss_mib: float


class _Pipes:
    """The descriptors that a job writes to and reads from, and what it has written."""

    def __init__(self, work: Work) -> None:
        self.stdout = Stream.open(work.limits.output_kib << 10, fatal=True)
        self.stderr = Stream.open(_STDERR_BYTES, fatal=False)
        self.streams = [self.stdout, self.stderr]
        if work.kind is JobKind.TESTER:
            self.streams.append(Stream.open(_RESULT_BYTES, fatal=True))
        self._stdin = stdin.sealed(work.stdin)
        self._calls = work.calls

    def descriptors(self) -> child.Descriptors:
        """The job's ends."""
        return child.Descriptors(
            stdin=self._stdin,
            stdout=self.stdout.write_fd,
            stderr=self.stderr.write_fd,
            result=self.streams[2].write_fd if len(self.streams) > 2 else None,
            calls=self._calls,
        )

    def hand_over(self) -> None:
        """The job has its ends: close ours of them."""
        for stream in self.streams:
            os.close(stream.write_fd)
        os.close(self._stdin)
        if self._calls is not None:
            os.close(self._calls)


def run(work: Work, place: Place, control: socket.socket) -> tuple[dict[str, Any], list[Stream]]:
    """Run one job; its call channel is closed.

    Returns:
        The report's header; standard output, standard error and result, to be closed by the caller.

    Raises:
        JobLost: our fault.
        OwnerGone: the owner closed the control socket.
    """
    began = time.monotonic()
    try:
        argv = place.argv(work)
    except (FileNotFoundError, ValueError) as error:
        raise JobLost(str(error)) from error
    ground = place.prepare(work)
    pipes = _Pipes(work)
    pid = os.fork()
    if pid == 0:
        child.run(work, pipes.descriptors(), ground, argv)
    pipes.hand_over()
    watch = Watch(
        pid,
        pipes.streams,
        work.limits,
        handoff=place.handoff,
        control=control,
        excess=place.excess_of(pid, work.limits),
        starved_s=place.starved_s,
    )
    try:
        try:
            stopped = watch.until_end()
        finally:
            end = _finish(pid, place.kill_all)
        wall_s = time.monotonic() - began
        if watch.drain() and stopped is None:
            stopped = Outcome.OUTPUT
    finally:
        watch.close()
    return _report(work, place, watch, stopped, end, wall_s, pipes.stderr), pipes.streams


def nothing_to_do() -> dict[str, Any]:
    """The report of a job whose work is done already."""
    return {
        "outcome": Outcome.OK,
        "exit_code": 0,
        "cpu_s": 0.0,
        "wall_s": 0.0,
        "peak_rss_mib": 0.0,
        "denied": {},
    }


def _finish(pid: int, kill_all: Callable[[], None]) -> _End:
    """Kill what is left of the job and reap it all."""
    os.kill(pid, signal.SIGKILL)  # it is not reaped yet: the number is its own
    kill_all()
    _, status, usage = os.wait4(pid, 0)
    cpu_s, peak_kib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss
    for other in _reap_others():
        cpu_s += other.ru_utime + other.ru_stime
        peak_kib = max(peak_kib, other.ru_maxrss)
    return _End(status=os.waitstatus_to_exitcode(status), cpu_s=cpu_s, peak_rss_mib=peak_kib / 1024)


def _reap_others() -> list[resource.struct_rusage]:
    reaped = []
    while True:
        try:
            reaped.append(os.wait4(-1, 0)[2])
        except ChildProcessError:
            return reaped


def _report(
    work: Work, place: Place, watch: Watch, stopped: Outcome | None, end: _End, wall_s: float, stderr: Stream
) -> dict[str, Any]:
    if not watch.started and stopped is None:
        raise JobLost(watch.message or f"the job's process ended with {end.status} before it was confined")
    denied = {_MACHINE.name_of(number): count for number, count in watch.denied.items()}
    if stopped is None and place.disk_is_full() and end.status != 0:
        stopped = Outcome.OUTPUT
    outcome = stopped or _outcome(work, end, bool(denied), stderr)
    if work.kind is JobKind.COMPILE and outcome is Outcome.OK and (why := place.keep(work)):
        raise JobLost(why)
    return {
        "outcome": outcome,
        "exit_code": end.status,
        "cpu_s": end.cpu_s,
        "wall_s": wall_s,
        "peak_rss_mib": end.peak_rss_mib,
        "denied": denied,
    }


def _outcome(work: Work, end: _End, denied: bool, stderr: Stream) -> Outcome:
    """What the end of a job that was not killed by us means."""
    limits: Limits = work.limits
    if end.status == -signal.SIGXCPU or end.cpu_s > limits.cpu_s:
        return Outcome.CPU
    if work.kind in _NATIVE and end.peak_rss_mib > limits.memory_mib + _PROGRAM_OWN_MIB:
        return Outcome.MEMORY
    if end.status == 0:
        return Outcome.OK
    if end.status == -signal.SIGXFSZ:
        return Outcome.OUTPUT
    if (denied and work.kind is not JobKind.COMPILE) or end.status == -signal.SIGSYS:
        return Outcome.FORBIDDEN
    if work.kind is JobKind.COMPILE and end.status > 0:
        return Outcome.COMPILE_ERROR
    if end.status == EXIT_MEMORY and work.kind in _PYTHON:
        return Outcome.MEMORY
    # nobody here sent it: the kernel was out of memory, or the job killed itself
    if end.status == -signal.SIGKILL and end.peak_rss_mib > limits.memory_mib / 2:
        return Outcome.MEMORY
    if work.kind is JobKind.EXEC and end.status == -signal.SIGABRT and _ran_out(stderr):
        return Outcome.MEMORY
    return Outcome.SIGNAL if end.status < 0 else Outcome.RUNTIME_ERROR


def _ran_out(stderr: Stream) -> bool:
    """What C++ and V8 say when they abort; a program that lies about it fails all the same."""
    return any(stderr.memory.find(text, stderr.used) for text in _OUT_OF_MEMORY)
