"""Bucket files in /dev/shm, through which a generator hands weights to its engine's workers.

Named after the process that wrote them, so that a successor can remove what a killed one left. The PID namespace
stands in the name too: containers may share /dev/shm, and process ids of another one say nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from pathlib import Path

import numpy as np

SHM = Path("/dev/shm")
_NAME = re.compile(r"funicular-(\d+)-(\d+)-\d+")
_counter = itertools.count()


async def write_bucket(data: np.ndarray) -> Path:
    """Copy a bucket into a new file, in a thread. The caller removes it.

    Raises:
        OSError: no room; the message says how much is needed.
    """
    path = SHM / f"funicular-{os.getpid()}-{_pid_namespace()}-{next(_counter)}"
    writing = asyncio.create_task(asyncio.to_thread(data.tofile, path))
    try:
        await asyncio.shield(writing)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"{data.nbytes} bytes do not fit into {SHM}: {error}") from error
    except asyncio.CancelledError:
        # The thread goes on; whatever it has made is removed when it is done.
        writing.add_done_callback(lambda _: path.unlink(missing_ok=True))
        raise
    return path


def remove_leftovers() -> list[str]:
    """Remove the files of our processes that are gone; returns their names."""
    removed = []
    namespace = _pid_namespace()
    for path in SHM.glob("funicular-*"):
        match = _NAME.fullmatch(path.name)
        if not match or match[2] != namespace or Path(f"/proc/{match[1]}").exists():
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):  # a generator that starts too was faster
            if path.lstat().st_uid == os.getuid():
                path.unlink()
                removed.append(path.name)
    return removed


def _pid_namespace() -> str:
    """Its inode: `pid:[4026531836]` gives 4026531836."""
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")
