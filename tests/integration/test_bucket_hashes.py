"""A bucket that was hashed ahead is the bucket that is loaded, or its hash does not count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from funicular.actors.fingerprint import fingerprint

pytestmark = pytest.mark.integration


@pytest.fixture
def transfer() -> Iterator[Any]:
    """The transfer engine of an engine worker whose model has no weights."""
    from funicular.actors.vllm_compat import ShmInitInfo, ShmWeightTransferEngine

    engine = ShmWeightTransferEngine.__new__(ShmWeightTransferEngine)
    engine.model = torch.nn.Module()
    engine.init_transfer_engine(ShmInitInfo())
    yield engine
    engine.shutdown()


def file_of(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_the_hash_taken_ahead_is_that_of_the_bucket(transfer: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path, "store", b"..first.second")
    transfer.hash_ahead((path, 8, 6))
    assert transfer.open_bucket(path, 8, 6, lasts=True) == xxhash.xxh3_64_intdigest(b"second")


def test_it_is_not_taken_again(transfer: Any, tmp_path: Path) -> None:
    """The old hash proves it: whoever hashed the bytes of now, in the pause, would see the new ones."""
    path = file_of(tmp_path, "store", b"..first.second")
    transfer.hash_ahead([path, 8, 6])  # a list, as it comes through vLLM's messages
    transfer._hashed_ahead[1].result()
    Path(path).write_bytes(b"..first.other!")
    assert transfer.open_bucket(path, 8, 6, lasts=True) == xxhash.xxh3_64_intdigest(b"second")


def test_another_bucket_does_not_get_it(transfer: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path, "store", b"..first.second")
    transfer.hash_ahead((path, 8, 6))
    assert transfer.open_bucket(path, 2, 5, lasts=True) == xxhash.xxh3_64_intdigest(b"first")


@pytest.mark.parametrize("lasts", [True, False])
def test_nor_does_the_next_weight_set_in_the_same_place(transfer: Any, tmp_path: Path, lasts: bool) -> None:
    path = file_of(tmp_path, "store", b"older")
    first_of_the_next = (path, 0, 5) if lasts else None
    transfer.hash_ahead((path, 0, 5))
    Path(path).write_bytes(b"newer")  # the one before was given up
    transfer.hash_ahead(first_of_the_next)
    transfer.start_weight_update()
    assert transfer.open_bucket(path, 0, 5, lasts=True) == xxhash.xxh3_64_intdigest(b"newer")


def test_bytes_on_a_device_are_compared_by_the_fingerprints_of_their_tensors(transfer: Any) -> None:
    values = torch.arange(40, dtype=torch.float32)
    transfer._bucket = values.view(torch.uint8)
    fingerprints = [fingerprint(values[:16]), fingerprint(values[16:24])]
    rows = [("a", [4, 4], "float32", 0, 64, fingerprints[0]), ("b", [8], "float32", 64, 32, fingerprints[1])]
    assert transfer.difference(None, 0, rows) == ""
    values[20] += 1
    assert transfer.difference(None, 0, rows).startswith("sees b with the fingerprint")
