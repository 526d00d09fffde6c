"""The buckets of a published weight set on their way to one generator: two fetched ahead while one is loaded."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

from funicular.actors.bucket_source import Bucket, BucketSource
from funicular.actors.weights import PublishedWeights

_AHEAD = 2
"""Buckets on their way or waiting while one is loaded."""


class ArrivingBuckets:
    """In order, from a first one on. Used as a context: on leaving it, what was not taken is let go of.

    Args:
        first: index of the bucket that is needed first; those before it are not fetched.
    """

    def __init__(self, source: BucketSource, published: PublishedWeights, first: int) -> None:
        self._source = source
        self._published = published
        self._following = iter(range(first, len(published.buckets)))
        self._coming: deque[asyncio.Task[Bucket]] = deque()

    async def __aenter__(self) -> ArrivingBuckets:
        self._fetch(_AHEAD)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._coming:
            task.cancel()
        for outcome in await asyncio.gather(*self._coming, return_exceptions=True):
            if isinstance(outcome, Bucket):
                outcome.close()

    async def wait(self) -> Bucket:
        """The one that is taken next, as soon as it is here; there must be one.

        Raises:
            WeightSyncError: it is lost, or is not what the manifest says.
        """
        return await asyncio.shield(self._coming[0])

    async def take(self) -> Bucket:
        """The next one, which the caller closes; another is fetched from now on. Raises as `wait` does."""
        bucket = await self.wait()
        self._coming.popleft()  # only now: until the caller has it, it is this one's to close
        self._fetch(1)
        return bucket

    def here(self) -> Bucket | None:
        """The one that is taken next; None: it has not come, or did not, or there is none."""
        if not self._coming:
            return None
        task = self._coming[0]
        came = task.done() and not task.cancelled() and task.exception() is None
        return task.result() if came else None

    def _fetch(self, count: int) -> None:
        for index in islice(self._following, count):
            self._coming.append(asyncio.create_task(self._source.open(self._published, index)))
