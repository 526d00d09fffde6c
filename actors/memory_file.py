"""Memory that the other processes of this user on this node can map, for as long as this process holds it open.

It has no name that could outlive a killed process, and needs no room in /dev/shm, which is small in many containers.
"""

from __future__ import annotations

import mmap
import os
import weakref

import numpy as np


class MemoryFile:
    """A file in memory alone.

    Raises:
        OSError: there can be no more of them.
    """

    def __init__(self, nbytes: int) -> None:
        self._descriptor = os.memfd_create("funicular")
        os.ftruncate(self._descriptor, nbytes)
        self.data = np.frombuffer(mmap.mmap(self._descriptor, nbytes), dtype=np.uint8)
        """(nbytes,) its content; what is written here is seen by everyone who has mapped it."""
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def path(self) -> str:
        """Where others find it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Nobody finds it any more; mappings that others have made stay good. `data` is empty from now on."""
        self.data = np.empty(0, dtype=np.uint8)  # with the mapping, which has a descriptor of its own
        self._close()  # does nothing when it is called again
