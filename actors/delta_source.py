"""Buckets of which only what changed is fetched: every generator keeps those of the newest version, and patches them.

A delta says which bucket it starts from, by its hash. A generator that does not have that one, because it is new or
missed a version, fetches the bucket itself; so does one whose patched bucket does not hash to what was published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from funicular.actors.bucket_delta import apply
from funicular.actors.bucket_source import Bucket, fetch
from funicular.actors.memory_file import MemoryFile
from funicular.actors.weights import PublishedWeights

_ITEMSIZES = {"bfloat16": 2, "float32": 4}


@dataclass(slots=True, eq=False)
class _Kept:
    """The newest content of one bucket, as far as it is known."""

    file: MemoryFile
    hash: int | None = None
    working: asyncio.Future[Any] | None = None
    """A thread that writes to it; it goes on when nobody waits for it any more."""

    async def change(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something that writes, in a thread, after whatever else still does."""
        if self.working is not None:
            await asyncio.wait({self.working})
        self.hash = None
        self.working = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        return await asyncio.shield(self.working)


@dataclass(slots=True)
class DeltaSource:
    """A `BucketSource` that fetches deltas where it can."""

    resyncs: int = field(default=0, init=False)
    """Buckets that a delta was sent of and that were fetched whole all the same."""
    _kept: dict[int, _Kept] = field(default_factory=dict, init=False)

    async def open(self, published: PublishedWeights, index: int) -> Bucket:
        """Fetch what changed of a bucket, or all of it; the caller closes it.

        Raises:
            WeightSyncError: at `bucket`: it is lost, or is not what the manifest says.
        """
        size, wanted = published.manifest.bucket_sizes[index], published.manifest.bucket_hashes[index]
        kept = self._kept.get(index)
        if kept is None or kept.file.data.size != size:
            if kept is not None:
                kept.file.close()
            kept = self._kept[index] = _Kept(MemoryFile(size))
        fetched = 0
        delta = published.delta(index)
        if delta is not None and kept.hash == delta[0]:
            data = await fetch(delta[1], f"delta {index}")
            fetched = data.nbytes
            itemsize = _ITEMSIZES[published.manifest.tensors[0].dtype]
            kept.hash = await kept.change(_patch, kept.file.data, data, itemsize)
        if kept.hash != wanted:
            self.resyncs += delta is not None
            data = await fetch(published.buckets[index], f"bucket {index}", size)
            fetched += size
            await kept.change(np.copyto, kept.file.data, data)
            kept.hash = wanted  # the workers check it; and so does the next delta
        return Bucket(path=kept.file.path, offset=0, nbytes=size, fetched_bytes=fetched, lasts=True, holds=kept)


def _patch(bucket: np.ndarray, delta: np.ndarray, itemsize: int) -> int | None:
    """Hash of the patched bucket; None: the delta is damaged."""
    import xxhash

    try:
        apply(delta, bucket, itemsize)
    except ValueError:
        return None
    return xxhash.xxh3_64_intdigest(bucket.data)
