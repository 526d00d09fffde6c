"""A job's standard input: bytes that nobody can change."""

from __future__ import annotations

import fcntl
import os

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed(data: memoryview) -> int:
    """A descriptor at the start of `data`, in memory.

    Raises:
        OSError: no memory.
    """
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def write_all(fd: int, data: memoryview) -> None:
    """Write every byte.

    Raises:
        OSError: it failed.
    """
    while data:
        data = data[os.write(fd, data) :]
