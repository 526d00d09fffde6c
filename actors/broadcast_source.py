"""The buckets of one install, which the learner's first rank broadcasts to the workers of the engine.

Only the way is another: what is sent stands in the object store too, and is fetched there if the broadcast breaks.
"""

from __future__ import annotations

from funicular.actors.bucket_source import Bucket
from funicular.actors.engine_link import EngineLink
from funicular.actors.errors import BroadcastBroken, first_line
from funicular.actors.weights import PublishedWeights
from funicular.cluster.calls import call


class BroadcastSource:
    """A `BucketSource`: each bucket that is opened is the next one that the workers receive."""

    async def open(self, published: PublishedWeights, index: int) -> Bucket:
        """See `BucketSource`; nothing is waited for here."""
        size = published.manifest.bucket_sizes[index]
        return Bucket(path=None, offset=0, nbytes=size, fetched_bytes=size, lasts=False, holds=None)


async def begin_broadcast(
    published: PublishedWeights, first: int, engine: EngineLink, *, generator: str, workers: int, seconds: float
) -> BroadcastSource:
    """Have the learner's first rank send and the workers receive, from the first bucket that is needed.

    Args:
        seconds: within which all must have come.

    Raises:
        BroadcastBroken: the learner does not send.
    """
    ref = published.sender.send_weights.remote(generator, workers, published.buckets[first:], seconds)
    what = "the learner's first rank to begin a broadcast"
    try:
        address = await call(ref, deadline_s=seconds, what=what)
    except Exception as error:  # whatever it is: the object store is there
        raise BroadcastBroken(f"waiting for {what}: {first_line(error)}") from error
    await engine.receive(address, published.manifest.bucket_sizes[first:], seconds)
    return BroadcastSource()
