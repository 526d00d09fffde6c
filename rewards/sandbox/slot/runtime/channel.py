"""Lines over one descriptor of a job. Nothing here waits for ever: the slot host kills a job at its wall time."""

from __future__ import annotations

import os
import select

from funicular.rewards.sandbox.codec import MAX_LINE_BYTES

_READ_BYTES = 1 << 16


class Channel:
    """Newline-delimited lines, both directions, on an open descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._received = bytearray()

    def receive(self) -> bytes | None:
        """The next line without its newline; None once the other end closed.

        Raises:
            ValueError: a line longer than `codec.MAX_LINE_BYTES`.
        """
        received = self._received
        searched = 0
        while (end := received.find(b"\n", searched)) < 0:
            searched = len(received)
            if searched > MAX_LINE_BYTES:
                raise ValueError(f"a line longer than {MAX_LINE_BYTES} bytes")
            chunk = os.read(self._descriptor, _READ_BYTES)
            if not chunk:
                return None
            if not received and chunk.find(b"\n") == len(chunk) - 1:
                return chunk[:-1]
            received += chunk
        line = bytes(memoryview(received)[:end])
        del received[: end + 1]
        return line

    def send(self, line: bytes) -> None:
        """Send one line; `line` has no newline.

        Raises:
            OSError: the other end closed.
        """
        left = memoryview(line + b"\n")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def has_input(self) -> bool:
        """Something arrived that no call of `receive` has returned yet."""
        if not self._received:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if poll.poll(0):
                self._received += os.read(self._descriptor, _READ_BYTES)
        return bool(self._received)
