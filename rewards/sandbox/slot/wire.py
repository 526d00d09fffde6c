"""What crosses the control socket between a slot host and the process that owns it.

Both directions: a frame is a header length (4 bytes, big-endian), a JSON header, and the blobs whose lengths
the header lists under `blobs`. A job with a call channel is followed by one byte that carries the channel's
descriptor (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from funicular.rewards.sandbox.types import Limits

_LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 1 << 20

STDIN_FD, STDOUT_FD, STDERR_FD, RESULT_FD, CALLS_FD = range(5)
"""Descriptors of a job: RESULT_FD only in a tester, CALLS_FD only in `serve` and `tester`."""

EXIT_MEMORY = 99
"""Exit status by which the Python runtime says that a MemoryError ended the program."""


class JobKind(StrEnum):
    """What a job does."""

    PROGRAM = "program"
    """Run Python source as __main__; blobs: source, stdin."""
    SERVE = "serve"
    """Run Python source, then answer calls on CALLS_FD; blobs: source."""
    TESTER = "tester"
    """Run trusted test source whose candidate is reached over CALLS_FD; blobs: source."""
    COMPILE = "compile"
    """Compile C++ to the slot's build folder; blobs: source. Native slots only."""
    EXEC = "exec"
    """Run a script or a compiled program; blobs: source, stdin. Native slots only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job for a slot."""

    kind: JobKind
    source: bytes
    stdin: bytes = b""
    limits: Limits = field(default_factory=Limits)
    options: dict[str, Any] = field(default_factory=dict)
    """Plain JSON for the runtime: a tester's style and statements, a native job's language."""


class SlotGone(ConnectionError):
    """The other end closed the control socket."""


def send(control: socket.socket, header: dict[str, Any], *blobs: bytes | memoryview) -> None:
    """Send one frame.

    Raises:
        OSError: the other end is gone, or the socket's timeout passed.
    """
    encoded = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    control.sendall(_LENGTH.pack(len(encoded)) + encoded)
    for blob in blobs:
        if blob:
            control.sendall(blob)


def receive(control: socket.socket) -> tuple[dict[str, Any], list[bytes]]:
    """Receive one frame.

    Raises:
        SlotGone: the other end closed.
        OSError: the socket's timeout passed.
        ValueError: no frame.
    """
    header, sizes = receive_header(control)
    return header, [_exactly(control, size) for size in sizes]


def receive_header(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive the first part of a frame, and the sizes of the blobs that follow.

    Raises:
        as `receive`.
    """
    (length,) = _LENGTH.unpack(_exactly(control, _LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(_exactly(control, length))
    return header, header.pop("blobs")


def receive_into(control: socket.socket, view: memoryview) -> None:
    """Receive as many bytes as `view` holds.

    Raises:
        SlotGone, OSError: as `receive`.
    """
    while view:
        got = control.recv_into(view)
        if not got:
            raise SlotGone("the control socket was closed")
        view = view[got:]


def _exactly(control: socket.socket, count: int) -> bytes:
    received = bytearray(count)
    receive_into(control, memoryview(received))
    return bytes(received)
