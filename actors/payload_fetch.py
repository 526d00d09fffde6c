"""Getting payloads out of the object store, and telling which are lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from funicular.actors.weights import PublishedWeights

log = logging.getLogger(__name__)

FETCH_DEADLINE_S = 120.0


def fetch_payloads(
    refs: Mapping[str, list[Any]], deadline_s: float = FETCH_DEADLINE_S
) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
    """Fetch payloads by group id. A group of which one is gone, or not there by the deadline, is lost.

    Args:
        refs: group id to a list of ray.ObjectRef, not to bare ones: Ray would resolve those before the call, and fail
            it for one that is lost.

    Returns:
        The payloads in the order of their references, whose arrays are read-only views of shared memory, and the ids
        of the lost groups.
    """
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, WorkerCrashedError

    ends = time.monotonic() + deadline_s
    flat = [ref for of_group in refs.values() for ref in of_group]
    if flat:
        ray.wait(flat, num_returns=len(flat), timeout=deadline_s, fetch_local=True)  # all at once; errors come below
    payloads: dict[str, list[Any]] = {}
    lost = []
    for group_id, of_group in refs.items():
        try:
            payloads[group_id] = ray.get(of_group, timeout=max(1.0, ends - time.monotonic()))
        except (ObjectLostError, RayActorError, WorkerCrashedError, GetTimeoutError) as error:
            log.warning("payload of group %s is lost: %s", group_id, str(error).splitlines()[0])
            lost.append(group_id)
    return payloads, tuple(lost)


def fetch_bucket(published: PublishedWeights | None, index: int) -> tuple[int, np.ndarray] | None:
    """Hash and bytes of a bucket of an earlier weight set; None: there is none, or it is lost."""
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError

    if published is None or index >= len(published.buckets):
        return None
    try:
        data = ray.get(published.buckets[index], timeout=FETCH_DEADLINE_S)
    except (ObjectLostError, GetTimeoutError) as error:
        log.warning("bucket %d of the earlier version is lost: %s", index, str(error).splitlines()[0])
        return None
    return published.manifest.bucket_hashes[index], data
