"""The buckets of a published weight set, each in a file that the engine's workers can map.

The object store stands in shared memory, but engine workers are no Ray processes and cannot ask it. Its memory is a
file that the raylet, this actor's parent, holds open: workers map that file, and nothing is copied. Where it cannot be
found or opened, the bucket is copied into a file of ours, which costs one copy and its memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from funicular.actors.memory_file import MemoryFile
from funicular.actors.weights import PublishedWeights, WeightSyncError

_ANCESTORS = 3
"""How far up the raylet is looked for: it forks workers itself, or a process of its own does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket, and where the engine's workers find it."""

    path: str | None
    """A file that every process of this node and user can map. None: it is the next one that a broadcast brings to the
    workers themselves."""
    offset: int
    """Bytes from the start of the file, any number."""
    nbytes: int
    fetched_bytes: int
    """Brought to this generator for it."""
    lasts: bool
    """The file will hold other buckets later, so that its mapping is worth keeping."""
    holds: Any
    """What keeps the memory from being used for something else."""

    def close(self) -> None:
        """No process will map it any more; mappings that were made stay good."""
        if isinstance(self.holds, MemoryFile):
            self.holds.close()


class BucketSource(Protocol):
    """How buckets come here: the transport, as a generator sees it."""

    async def open(self, published: PublishedWeights, index: int) -> Bucket:
        """Bring a bucket into reach of the engine's workers; the caller closes it.

        Raises:
            WeightSyncError: at `bucket`: it is lost, or is not what the manifest says.
        """


@dataclass(slots=True)
class StoreSource:
    """Buckets from Ray's object store, in whose memory the workers map them."""

    copied: int = field(default=0, init=False)
    """Buckets that had to be copied since the start."""

    async def open(self, published: PublishedWeights, index: int) -> Bucket:
        """See `BucketSource`."""
        size = published.manifest.bucket_sizes[index]
        data = await fetch(published.buckets[index], f"bucket {index}", size)
        if place := find_file(data):
            return Bucket(path=place[0], offset=place[1], nbytes=size, fetched_bytes=size, lasts=True, holds=data)
        self.copied += 1
        file = MemoryFile(size)
        copying = asyncio.ensure_future(asyncio.to_thread(np.copyto, file.data, data))
        try:
            await asyncio.shield(copying)
        except BaseException:  # nobody wants it any more, but a thread cannot be stopped
            await asyncio.wait({copying})
            file.close()
            raise
        return Bucket(path=file.path, offset=0, nbytes=size, fetched_bytes=size, lasts=False, holds=file)


async def fetch(ref: Any, what: str, nbytes: int | None = None) -> np.ndarray:
    """(nbytes,) uint8 of an object of the store.

    Raises:
        WeightSyncError: at `bucket`: it is lost, or something else.
    """
    try:
        data = await ref
    except Exception as error:  # whatever the object store says of a lost object
        raise WeightSyncError("bucket", f"{what} could not be fetched: {error}") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (nbytes or data.size,):
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise WeightSyncError("bucket", f"{what} is {got}, expected uint8 ({nbytes or 'any'},)")
    return data


def find_file(data: np.ndarray) -> tuple[str, int] | None:
    """Path and offset under which an ancestor of this process holds the memory of `data` open; None: none does."""
    start = data.ctypes.data
    end = start + data.nbytes
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, device, inode, *_ = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= start < last:
            if end > last or inode == "0":
                return None
            major, minor = (int(number, 16) for number in device.split(":"))
            path = _held_open(os.makedev(major, minor), int(inode))
            return None if path is None else (path, int(offset, 16) + start - first)
    return None


def _held_open(device: int, inode: int) -> str | None:
    for pid in _ancestors():
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                found = os.stat(entry.path)
                if (found.st_dev, found.st_ino) == (device, inode):
                    return entry.path
        except OSError:  # it has ended, or may not be looked into
            continue
    return None


def _ancestors() -> Iterable[int]:
    pid = os.getpid()
    for _ in range(_ANCESTORS):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
        if pid <= 1:
            return
        yield pid
