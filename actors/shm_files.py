"""Bucket files in /dev/shm, through which a generator hands weights to its engine's workers.

Named after the process that wrote them, so that a successor can remove what a killed one left.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from pathlib import Path

import numpy as np

SHM = Path("/dev/shm")
_NAME = re.compile(r"funicular-(\d+)-\d+")
_counter = itertools.count()


async def write_bucket(data: np.ndarray) -> Path:
    """Copy a bucket into a new file, in a thread. The caller removes it.

    Raises:
        OSError: no room; the message says how much is needed.
    """
    path = SHM / f"funicular-{os.getpid()}-{next(_counter)}"
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
    """Remove the files of processes that are gone; returns their names."""
    removed = []
    for path in SHM.glob("funicular-*"):
        match = _NAME.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed
