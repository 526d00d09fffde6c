"""Deltas arrive, are applied to the right bucket or not at all, and whatever is wrong with one, the bucket is whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from funicular.actors.bucket_delta import encode
from funicular.actors.delta_source import DeltaSource
from funicular.actors.weights import Canary, Manifest, PublishedWeights, TensorEntry, WeightSyncError
from tests.publish_helpers import FakeRef

SIZE = 6400


def content(version: int) -> np.ndarray:
    """Each version differs from the one before in a few elements."""
    data = np.random.default_rng(0).integers(0, 1 << 16, SIZE // 2, dtype=np.uint16)
    data[:version] += 1
    return data.view(np.uint8)


def published(version: int, *, base: int | None = None, delta: np.ndarray | None = None) -> PublishedWeights:
    data = content(version)
    if base is not None and delta is None:
        delta = encode(data, content(base), 2)
    entry = TensorEntry(
        name="w",
        shape=(SIZE // 2,),
        dtype="bfloat16",
        bucket=0,
        offset=0,
        nbytes=SIZE,
        fingerprint=0,
        column_fingerprint=None,
    )
    manifest = Manifest(
        version=version,
        tensors=(entry,),
        bucket_sizes=(SIZE,),
        bucket_hashes=(xxhash.xxh3_64_intdigest(data),),
        columns=1,
        canary=Canary(token_ids=(1, 2), logprobs=(-1.0,)),
        delta_bases=(None if base is None else xxhash.xxh3_64_intdigest(content(base)),),
    )
    return PublishedWeights(manifest=manifest, buckets=(FakeRef(data),), deltas=(FakeRef(delta),))


async def arrives(source: DeltaSource, weights: PublishedWeights) -> int:
    """Bytes that were fetched for it; what workers would map is the whole bucket of this version."""
    bucket = await source.open(weights, 0)
    assert Path(bucket.path).read_bytes() == content(weights.manifest.version).tobytes()
    bucket.close()
    return bucket.fetched_bytes


async def test_a_generator_that_has_the_version_before_fetches_only_what_changed() -> None:
    source = DeltaSource()
    assert await arrives(source, published(1)) == SIZE
    assert await arrives(source, published(3, base=1)) < SIZE / 10
    assert await arrives(source, published(4, base=3)) < SIZE / 10
    assert source.resyncs == 0


async def test_one_that_is_new_or_missed_a_version_fetches_everything() -> None:
    source = DeltaSource()
    assert await arrives(source, published(2, base=1)) == SIZE
    assert await arrives(source, published(5, base=4)) == SIZE
    assert await arrives(source, published(6, base=5)) < SIZE / 10


@pytest.mark.parametrize("spoil", [lambda delta: delta[:-2], lambda delta: delta ^ 1], ids=["cut", "damaged"])
async def test_a_delta_that_does_not_give_the_published_bytes_costs_a_whole_fetch(spoil: Any) -> None:
    source = DeltaSource()
    await arrives(source, published(1))
    delta = encode(content(2), content(1), 2)
    assert delta is not None
    assert await arrives(source, published(2, base=1, delta=spoil(delta))) > SIZE
    assert source.resyncs == 1
    assert await arrives(source, published(3, base=2)) < SIZE / 10


async def test_a_lost_delta_is_a_bucket_error_and_sending_it_whole_heals() -> None:
    class FakeNeverRef:
        def __await__(self) -> Any:
            return asyncio.sleep(3600).__await__()

    source = DeltaSource()
    await arrives(source, published(1))
    weights = published(2, base=1)
    never = PublishedWeights(manifest=weights.manifest, buckets=weights.buckets, deltas=(FakeNeverRef(),))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.open(never, 0), 0.01)
    lost = PublishedWeights(manifest=weights.manifest, buckets=weights.buckets, deltas=(None,))
    with pytest.raises(WeightSyncError, match="delta 0 could not be fetched"):
        await source.open(lost, 0)
    assert await arrives(source, published(2)) == SIZE
