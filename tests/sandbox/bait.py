"""What the tests put on the machine for hostile programs to steal, to reach or to break."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.programs import BAIT, BAIT_FOLDER, BAIT_SHM_KEY, BAIT_VARIABLE, SECRET

_IPC_CREAT, _IPC_RMID = 0o1000, 0


@dataclass(eq=False, slots=True, kw_only=True)
class Bait:
    """Set out by `set_out`."""

    listeners: list[socket.socket]
    """An abstract socket and one with a path, both open to everyone."""

    @property
    def environment(self) -> dict[str, str]:
        """For the process that runs the sandbox: secrets as services have them."""
        return {BAIT_VARIABLE: SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": SECRET}

    def touched(self) -> list[str]:
        """What was done to it, for people; empty: nothing."""
        found = []
        for listener in self.listeners:
            with suppress(BlockingIOError):
                found.append(f"{listener.getsockname()!r} received {listener.recv(100)!r}")
        folder = Path(BAIT_FOLDER)
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        if names != ["precious", "socket"]:
            found.append(f"{folder} holds {names}")
        elif (folder / "precious").read_text() != SECRET:
            found.append(f"{folder / 'precious'} was changed")
        return found


@contextmanager
def set_out() -> Iterator[Bait]:
    """Put it there, open to every user of this machine; take it away in the end."""
    folder = Path(BAIT_FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "precious").write_text(SECRET)
    (folder / "precious").chmod(0o666)
    listeners = []
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(BAIT_SHM_KEY, 4096, _IPC_CREAT | 0o666)
    try:
        for address in (f"\0{BAIT}", str(folder / "socket")):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listeners.append(listener)
            listener.setblocking(False)
            listener.bind(address)
        (folder / "socket").chmod(0o777)
        yield Bait(listeners=listeners)
    finally:
        for listener in listeners:
            listener.close()
        if segment >= 0:
            libc.shmctl(segment, _IPC_RMID, None)
        shutil.rmtree(folder, ignore_errors=True)
