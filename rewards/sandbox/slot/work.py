"""A job as the slot host holds it, and memory that leaves no trace.

Every job is a fork of the host and can search its own memory. What one job was given and what it printed must
therefore never be in the host's heap, where freed memory keeps its content: another completion of the same task
would find a solution there, or an answer. It is kept in mappings of its own, which are unmapped after the job.
"""

from __future__ import annotations

import mmap
import socket
from dataclasses import dataclass, replace
from typing import Any

from funicular.rewards.sandbox.slot import wire
from funicular.rewards.sandbox.slot.wire import JobKind
from funicular.rewards.sandbox.types import Limits


class Scratch:
    """Zeroed memory that `close` gives back to the kernel. Pages that are not written to cost nothing."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(size, 1))
        self.view = memoryview(self._memory)
        """Of at least one byte."""

    def find(self, text: bytes, end: int) -> bool:
        """Whether `text` is in the first `end` bytes."""
        return self._memory.find(text, 0, end) >= 0

    def close(self) -> None:
        """Unmap it. Slices of the view must be released or unreachable."""
        self.view.release()
        self._memory.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One job, received."""

    kind: JobKind
    source: memoryview
    stdin: memoryview
    limits: Limits
    options: dict[str, Any]
    calls: int | None
    """Descriptor of the call channel."""
    memory: Scratch
    """Holds source and input."""

    def mentions(self, text: bytes) -> bool:
        """Whether the source contains `text`."""
        return self.memory.find(text, len(self.source))

    def compilation(self, limits: Limits) -> Work:
        """The job that compiles this job's program; it shares this one's memory."""
        return replace(self, kind=JobKind.COMPILE, stdin=self.stdin[:0], limits=limits, calls=None)

    def close(self) -> None:
        """Forget it."""
        self.source.release()
        self.stdin.release()
        self.memory.close()


def receive(control: socket.socket) -> Work:
    """Wait for the next job.

    Raises:
        SlotGone, OSError: the owner is gone.
        ValueError: no job.
    """
    header, sizes = wire.receive_header(control)
    source_size, stdin_size = [*sizes, 0][:2]
    memory = Scratch(source_size + stdin_size)
    with memory.view[: source_size + stdin_size] as blobs:
        wire.receive_into(control, blobs)
    return Work(
        kind=JobKind(header["kind"]),
        source=memory.view[:source_size],
        stdin=memory.view[source_size : source_size + stdin_size],
        limits=Limits(**header["limits"]),
        options=header["options"],
        calls=socket.recv_fds(control, 1, 1)[1][0] if header["calls"] else None,
        memory=memory,
    )
