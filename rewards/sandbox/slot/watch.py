"""Watching one job: its output, its CPU time, its denied calls, its end."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from funicular.rewards.sandbox.slot import seccomp
from funicular.rewards.sandbox.slot.confinement import STARTED
from funicular.rewards.sandbox.slot.work import Scratch
from funicular.rewards.sandbox.types import Limits, Outcome

MAX_DENIED = 1000
"""Denied calls in one job, after which it is killed."""
_WAKE_S = 0.1
_SHORTEST_WAKE_S = 0.005
CHUNK = 1 << 16
_MESSAGE_BYTES = 1000


class OwnerGone(Exception):
    """The process that owns this slot closed the control socket."""


@dataclass(slots=True)
class Stream:
    """One pipe that a job writes to."""

    fd: int
    write_fd: int
    """The job's end."""
    limit: int
    fatal: bool
    """More than `limit` bytes end the job; else they are dropped."""
    memory: Scratch
    """Of `limit` bytes, and CHUNK more for what is dropped."""
    used: int = 0
    """Bytes that it holds."""

    @classmethod
    def open(cls, limit: int, *, fatal: bool) -> Stream:
        """A new pipe; our end does not block."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        return cls(fd=read, write_fd=write, limit=limit, fatal=fatal, memory=Scratch(limit + CHUNK))

    def take(self) -> bool | None:
        """Read once, without waiting.

        Returns:
            True: there may be more; False: nothing now; None: it is closed.

        Raises:
            TooMuchOutput: beyond the limit.
        """
        with self.memory.view[self.used : self.used + CHUNK] as room:
            try:
                count = os.readv(self.fd, [room])
            except BlockingIOError:
                return False
        if not count:
            return None
        too_much = self.used + count > self.limit
        self.used = min(self.used + count, self.limit)
        if too_much and self.fatal:
            raise TooMuchOutput
        return True

    def data(self) -> memoryview:
        """What it holds; to be released before `close`."""
        return self.memory.view[: self.used]

    def close(self) -> None:
        """Close the pipe and forget what came."""
        os.close(self.fd)
        self.memory.close()


class TooMuchOutput(Exception):
    """A stream's limit was passed."""


class Watch:
    """One job, from its start until it ended or must be killed."""

    def __init__(
        self,
        pid: int,
        streams: list[Stream],
        limits: Limits,
        *,
        handoff: socket.socket,
        control: socket.socket,
        excess: Callable[[], Outcome | None],
        starved_s: Callable[[], float],
    ) -> None:
        """Take over a process that was just forked.

        Args:
            streams: non-blocking.
            handoff: on which the job says that it is confined, and hands over its listener.
            excess: whether something is used up that only this level or role counts; asked now and then.
            starved_s: how long the job was ready to run and had no core; asked when its time is up.
        """
        self.started = False
        """It was confined, and then ran judged code."""
        self.message = ""
        """Why it was not."""
        self.denied: dict[int, int] = {}
        """Denied system calls: their numbers, and how often."""
        self._streams = {stream.fd: stream for stream in streams}
        self._limits = limits
        self._handoff = handoff
        self._control = control
        self._excess = excess
        self._starved_s = starved_s
        self._listener = -1
        self._pidfd = os.pidfd_open(pid)
        # the id of another process's CPU clock, from <linux/posix-timers.h>: CPUCLOCK_SCHED is 2
        self._clock = (~pid << 3) | 2
        self._poll = select.poll()
        for fd in (*self._streams, self._pidfd, handoff.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._poll.register(control.fileno(), 0)

    def close(self) -> None:
        """Close what this object opened."""
        os.close(self._pidfd)
        if self._listener >= 0:
            os.close(self._listener)

    def until_end(self) -> Outcome | None:
        """Wait.

        Returns:
            None: it ended by itself; else why it must be killed.

        Raises:
            OwnerGone: nobody waits for it any more.
        """
        began = time.monotonic()
        deadline = began + self._limits.wall_s
        check = began + min(self._limits.cpu_s, _WAKE_S)
        while True:
            now = time.monotonic()
            if now >= deadline:
                longest = self._limits.longest_wall_s
                extended = began + min(self._limits.wall_s + self._starved_s(), longest)
                if extended - now < _SHORTEST_WAKE_S:
                    return Outcome.WALL
                deadline = extended
            if now >= check:
                if excess := self._over_limits():
                    return excess
                check = now + min(max(self._limits.cpu_s - self._cpu_s(), _SHORTEST_WAKE_S), _WAKE_S)
            try:
                if self._turn(min(deadline, check) - now):
                    return None
            except TooMuchOutput:
                return Outcome.OUTPUT
            if sum(self.denied.values()) > MAX_DENIED:
                return Outcome.FORBIDDEN

    def _turn(self, seconds: float) -> bool:
        """Handle what is there, or comes within `seconds`. Returns whether the job has ended."""
        ended = False
        for fd, events in self._poll.poll(max(1, math.ceil(seconds * 1000))):
            if fd in self._streams:
                if self._streams[fd].take() is None:
                    self._poll.unregister(fd)
            elif fd == self._pidfd:
                ended = True
            elif fd == self._listener:
                self._refuse(events)
            elif fd == self._control.fileno():
                raise OwnerGone
            else:
                self._receive_handoff()
        return ended

    def _over_limits(self) -> Outcome | None:
        return Outcome.CPU if self._cpu_s() > self._limits.cpu_s else self._excess()

    def _cpu_s(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0  # it has ended; its exact time comes from wait4

    def _receive_handoff(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._handoff, _MESSAGE_BYTES, 1)
        if message[:1] != STARTED:
            self.message = message[1:].decode(errors="replace")
            return
        self.started = True
        if fds:
            self._listener = fds[0]
            self._poll.register(self._listener, select.POLLIN)

    def _refuse(self, events: int) -> None:
        if not events & select.POLLIN:
            self._poll.unregister(self._listener)  # nobody is left whom it announces
            return
        number = seccomp.refuse_next(self._listener)
        if number is not None:
            self.denied[number] = self.denied.get(number, 0) + 1

    def drain(self) -> bool:
        """After everything that could write is dead: read what is left. Returns whether a limit was passed."""
        if not self.started:
            self._drain_handoff()
        try:
            for stream in self._streams.values():
                while stream.take():
                    pass
        except TooMuchOutput:
            return True
        return False

    def _drain_handoff(self) -> None:
        """A job that ended before we looked must leave nothing for the next one."""
        try:
            self._handoff.setblocking(False)
            self._receive_handoff()
        except BlockingIOError as error:
            if error.errno != errno.EAGAIN:
                raise
        finally:
            self._handoff.setblocking(True)
