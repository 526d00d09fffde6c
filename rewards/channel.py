"""A child process that answers one framed message at a time and can always be killed.

A frame is a length (8 bytes, big-endian) and that many bytes. Requests are pickles, from us; replies are
JSON, so that nothing the child says is executed here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

from funicular.rewards import processes

log = logging.getLogger(__name__)

HEADER = struct.Struct(">Q")
MAX_REPLY_BYTES = 16 << 20
_REAP_DEADLINE_S = 10.0


class ChildDiedError(RuntimeError):
    """The child exited, or broke the protocol, before it answered."""


class ChildTimeoutError(RuntimeError):
    """The child did not answer within the limit. It was killed."""


class Child:
    """One process, in a session of its own. Whatever it starts is killed with it.

    Start it from a thread that lives as long as it should: the kernel's parent-death signal, which the child
    asks for, fires when that thread ends.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            bufsize=0,
            start_new_session=True,
        )
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """It runs, and was not killed: one that the kernel holds answers nobody."""
        return not self._stdin.closed and self._process.poll() is None

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def exchange(self, request: bytes, limit_s: float) -> bytes:
        """Send one request and wait for its reply, at most `limit_s` seconds for both together.

        Raises:
            ChildTimeoutError, ChildDiedError: the child was killed in both cases.
        """
        try:
            return self._exchange(request, time.monotonic() + limit_s)
        except TimeoutError:
            self.kill()
            raise ChildTimeoutError(f"no answer in {limit_s:g} s") from None
        except (EOFError, BrokenPipeError, ValueError) as error:
            code = self._process.poll()
            self.kill()
            how = f"exit code {self._process.returncode if code is None else code}"
            raise ChildDiedError(f"the reward process died ({how}) {error}".rstrip()) from None

    def kill(self) -> None:
        """SIGKILL to it and all that it started, then reap. Safe to call twice. What the kernel holds is left."""
        below = processes.descendants(self.pid) if self._process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):  # the group is gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        processes.kill(below)
        try:
            self._process.wait(_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired:  # in a system call; it ends with that, and Popen reaps it later
            log.warning("reward process %d has not ended %.0f s after SIGKILL", self.pid, _REAP_DEADLINE_S)
        self._stdin.close()
        self._stdout.close()

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        unsent = memoryview(HEADER.pack(len(request)) + request)
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                # Short slices: a grandchild may hold the pipe open after the child's death, and no EOF comes.
                ready = selector.select(min(remaining, 0.2))
                if not ready and not self.alive:
                    raise EOFError
                for key, _ in ready:
                    if key.fileobj is self._stdin:
                        unsent = unsent[os.write(self._stdin.fileno(), unsent[: 1 << 16]) :]
                        if not unsent:
                            selector.unregister(self._stdin)
                    elif reply := self._receive(received):
                        return reply

    def _receive(self, received: bytearray) -> bytes | None:
        """Take what is there; the whole reply once it is complete."""
        piece = os.read(self._stdout.fileno(), 1 << 20)
        if not piece:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its output and lives on: killed next
                self._process.wait(_REAP_DEADLINE_S)
            raise EOFError
        received += piece
        if len(received) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(received)
        if not 0 < length <= MAX_REPLY_BYTES:
            raise ValueError(f"announced a reply of {length} bytes, at most {MAX_REPLY_BYTES} allowed")
        return bytes(received[HEADER.size :]) if len(received) >= HEADER.size + length else None
