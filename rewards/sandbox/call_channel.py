"""Our end of the call channel to a judged process, and the job behind it.

What the judged process sends is a claim, and counts only as the answer to the request before it. Anything that
it says unasked, before a request, after a reply or beyond the caps, is a protocol violation.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.account import ending
from funicular.rewards.sandbox.slot.wire import Job
from funicular.rewards.sandbox.slot_process import SlotLost, SlotProcess
from funicular.rewards.sandbox.types import JobReport, Outcome

MAX_TOTAL_BYTES = 32 << 20
"""Of all replies of one submission: reading hostile data costs the trusted side CPU time too."""
MAX_READY_BYTES = 512 << 10
"""Of the line that announces the candidate's names."""
GRACE_S = 1.0
"""Beyond a job's wall time, for the slot host to end it first."""
_LOST_AFTER_S = 60.0
"""Beyond a job's wall time: `SlotProcess.run` gives up long before."""
_RECEIVE_BYTES = 1 << 16


class ChannelError(Exception):
    """The exchange over a call channel ended early."""


class ProtocolViolation(ChannelError):
    """The judged process said what it must not say."""


class TooMuchSaid(ChannelError):
    """It said more than its replies may take altogether."""


class ChannelClosed(ChannelError):
    """The judged process is gone; its report says why."""


class ChannelTimeout(ChannelError):
    """The deadline of the channel has passed."""


class CallChannel:
    """Lines over our end of a socket pair, with a deadline for all of it.

    Args:
        seconds: from now until nothing is waited for any more.
        most_bytes: that the other end may say altogether.
    """

    def __init__(self, ours: socket.socket, seconds: float, most_bytes: int) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._deadline = time.monotonic() + seconds
        self._may_receive = most_bytes
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(ours, select.POLLIN)
        self._writable.register(ours, select.POLLOUT)

    def ask(self, line: bytes) -> bytes:
        """Send a request and return the one line that answers it.

        Raises:
            ProtocolViolation: something was said before the request or after the reply, or the line is too long.
            TooMuchSaid, ChannelClosed, ChannelTimeout: see there.
        """
        self.expect_silence()
        self.send(line)
        return self.receive()

    def expect_silence(self) -> None:
        """Check that nothing was said unasked.

        Raises:
            ProtocolViolation: something was.
            ChannelClosed: the other end is gone.
        """
        try:
            chunk = self._socket.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosed from error
        if chunk:
            raise ProtocolViolation("it said something that it was not asked")
        raise ChannelClosed

    def expect_no_more(self) -> None:
        """Check that nothing was said after the last reply; the other end may be gone.

        Raises:
            ProtocolViolation: something was.
        """
        with suppress(ChannelClosed):
            self.expect_silence()

    def send(self, line: bytes) -> None:
        """Send one line; `line` has no newline.

        Raises:
            ChannelClosed, ChannelTimeout: see there.
        """
        left = memoryview(line + b"\n")
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._wait(self._writable)
            except OSError as error:
                raise ChannelClosed from error

    def receive(self, limit: int = codec.MAX_LINE_BYTES) -> bytes:
        """The next line, without its newline, and nothing after it.

        Raises:
            ProtocolViolation: it is longer than `limit`, or something follows it.
            TooMuchSaid, ChannelClosed, ChannelTimeout: see there.
        """
        chunks: list[bytes] = []
        size = 0
        while True:
            self._wait(self._readable)
            try:
                chunk = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChannelClosed from error
            if not chunk:
                raise ChannelClosed
            size += len(chunk)
            self._may_receive -= len(chunk)
            end = chunk.find(b"\n")
            if size > limit + 1:
                raise ProtocolViolation(f"a line of more than {limit} bytes")
            if self._may_receive < 0:
                raise TooMuchSaid
            if end < 0:
                chunks.append(chunk)
                continue
            if end != len(chunk) - 1:
                raise ProtocolViolation("it said more than its reply")
            chunks.append(chunk[:end])
            return b"".join(chunks)

    def _wait(self, poll: select.poll) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise ChannelTimeout


class ChannelJob:
    """A job with a call channel, under way in a thread of its own; leaving the context closes the channel.

    Args:
        slot: `SlotProcess.run` blocks, hence the thread.
        seconds, most_bytes: as for `CallChannel`.
    """

    def __init__(self, slot: SlotProcess, job: Job, seconds: float, most_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._slot, self._job = slot, job
        self._ours, self._theirs = socket.socketpair()
        self.channel = CallChannel(self._ours, seconds, most_bytes)
        self._report: JobReport | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"{slot.name}-channel-job", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def finish(self) -> JobReport:
        """Close the channel, which ends the job, and wait for its report.

        Raises:
            SlotLost: the slot died or fell silent.
        """
        self._end()
        if self._error is not None:
            raise self._error
        if self._report is None:
            raise SlotLost(f"slot {self._slot.name}: no report of a job {_LOST_AFTER_S:.0f} s after its wall time")
        return self._report

    def _run(self) -> None:
        try:
            self._report = self._slot.run(self._job, calls=self._theirs)
        except BaseException as error:  # raised again in the thread that waits for it
            self._error = error
        finally:
            # Where run() failed before it sent the other end away, only this lets the waiting side see an end.
            self._theirs.close()

    def _end(self) -> None:
        self._ours.close()
        self._thread.join(self._job.limits.longest_wall_s + _LOST_AFTER_S)


def check_ready(line: bytes) -> None:
    """Raises ProtocolViolation for another first line than the announcement that the source has run."""
    message = read_message(line)
    if not isinstance(message.get("ready"), Mapping):
        raise ProtocolViolation("its first line is no announcement")


def why_it_ended(stopped: ChannelError | None, report: JobReport) -> tuple[Outcome, str] | None:
    """Outcome and reason of a job that did not do all that it was asked; None: it did."""
    if isinstance(stopped, ProtocolViolation):
        return Outcome.PROTOCOL, f"protocol: {stopped}"
    if isinstance(stopped, TooMuchSaid):
        return Outcome.OUTPUT, f"output: its replies take more than {MAX_TOTAL_BYTES >> 20} MiB"
    if report.outcome is not Outcome.OK:
        return report.outcome, ending(report)
    if isinstance(stopped, ChannelTimeout):
        return Outcome.WALL, "wall: no reply within its wall time"
    if isinstance(stopped, ChannelClosed):
        return Outcome.RUNTIME_ERROR, "runtime_error: it ended before it answered"
    return None


def read_message(line: bytes) -> Mapping[str, Any]:
    """A line of the judged process. Raises ProtocolViolation for what is no JSON object."""
    try:
        message = codec.loads(line)
    except ValueError as error:
        raise ProtocolViolation(f"a line that is no data: {error}") from None
    if type(message) is not dict:
        raise ProtocolViolation("a line that is no object")
    return message
