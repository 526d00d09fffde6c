"""Buckets come into reach of the engine's workers: mapped where the object store's file is found, else copied."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funicular.actors.bucket_source import StoreSource, find_file
from funicular.actors.weights import Canary, Manifest, PublishedWeights, WeightSyncError
from tests.publish_helpers import FakeRef

DATA = np.arange(256, dtype=np.uint8)


def weights(bucket: Any) -> PublishedWeights:
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
    manifest = Manifest(version=1, tensors=(), bucket_sizes=(256,), bucket_hashes=(1,), columns=1, canary=canary)
    return PublishedWeights(manifest=manifest, buckets=(bucket,))


async def test_memory_that_no_file_backs_is_copied_into_one_that_lasts_until_it_is_closed() -> None:
    source = StoreSource()
    bucket = await source.open(weights(FakeRef(DATA)), 0)
    assert Path(bucket.path).read_bytes()[bucket.offset :] == DATA.tobytes()
    assert source.copied == 1
    bucket.close()
    bucket.close()
    assert not Path(bucket.path).exists()


@pytest.mark.parametrize(
    ("data", "message"), [(DATA[:255], "uint8 \\(255,\\)"), (DATA.view(np.int8), "int8"), (b"x" * 256, "is bytes")]
)
async def test_what_is_not_the_manifests_bucket_is_refused(data: Any, message: str) -> None:
    with pytest.raises(WeightSyncError, match=message) as caught:
        await StoreSource().open(weights(FakeRef(data)), 0)
    assert caught.value.stage == "bucket"


async def test_a_lost_bucket_is_refused_with_what_the_store_said() -> None:
    class FakeLostRef:
        def __await__(self) -> Any:
            raise RuntimeError("owner died")
            yield

    with pytest.raises(WeightSyncError, match="bucket 0 could not be fetched: owner died"):
        await StoreSource().open(replace(weights(None), buckets=(FakeLostRef(),)), 0)


_CHILD = """
import mmap, os, sys
import numpy as np
from funicular.actors.bucket_source import find_file

with open(sys.argv[1], "rb") as file:
    mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
path, offset = find_file(np.frombuffer(mapping, dtype=np.uint8)[5000:5100])
with open(path, "rb") as file:
    file.seek(offset)
    print(file.read(100).hex())
"""


def test_shared_memory_is_found_in_the_files_that_a_parent_holds_open(tmp_path: Path) -> None:
    path = tmp_path / "store"
    content = np.random.default_rng(0).integers(0, 256, 3 * mmap.PAGESIZE, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    with path.open("rb"):
        command = [sys.executable, "-c", _CHILD, str(path)]
        child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert bytes.fromhex(child.stdout) == content[5000:5100]


def test_private_memory_is_found_in_no_file() -> None:
    assert find_file(DATA) is None
