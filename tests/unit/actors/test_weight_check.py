"""What is refused before an engine is touched, and what its workers' reports must add up to."""

from dataclasses import replace
from typing import Any

import pytest

from funicular.actors.weight_check import (
    ExpectedTensor,
    Observation,
    check_in_use,
    check_manifest,
    check_received,
)
from funicular.actors.weights import Canary, Manifest, TensorEntry, WeightSyncError

TOP = (1 << 64) - 1


def entry(name: str, **changes: Any) -> TensorEntry:
    values: dict[str, Any] = {
        "shape": (4, 8),
        "dtype": "float32",
        "bucket": 0,
        "offset": 0,
        "nbytes": 128,
        "fingerprint": 100,
        "column_fingerprint": 30,
    }
    return TensorEntry(name=name, **{**values, **changes})


def manifest(*tensors: TensorEntry, **changes: Any) -> Manifest:
    values: dict[str, Any] = {"version": 1, "bucket_sizes": (256,), "bucket_hashes": (1,), "columns": 2}
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
    return Manifest(tensors=tensors, canary=canary, **{**values, **changes})


def expected(*names: str) -> list[ExpectedTensor]:
    return [ExpectedTensor(name=name, shape=(4, 8), dtype="float32") for name in names]


def used(tensor: str, fingerprint: int, **changes: Any) -> Observation:
    values: dict[str, Any] = {"module": "m", "kind": "elements", "shard": 0, "shards": 1}
    return Observation(tensor=tensor, fingerprint=fingerprint, **{**values, **changes})


def test_a_manifest_of_what_the_engine_needs_passes() -> None:
    check_manifest(manifest(entry("q"), entry("k", offset=128)), expected("k", "q"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((entry("q"),), "missing k; the engine needs 2"),
        ((entry("q"), entry("k"), entry("lm_head.weight")), "unknown lm_head.weight"),
        ((entry("q"), entry("k"), entry("k")), "k: listed more than once"),
        ((entry("q"), entry("k", shape=(8, 4))), r"k: shape \(8, 4\), the engine needs \(4, 8\)"),
        ((entry("q"), entry("k", dtype="bfloat16")), "k: dtype bfloat16, the engine needs float32"),
        ((entry("q"), entry("k", nbytes=64)), "k: bytes 64, the engine needs 128"),
        ((entry("q"), entry("k", offset=8)), "k: offset modulo the alignment 8"),
        ((entry("q"), entry("k", offset=192)), "k: ends beyond its bucket of 256"),
        ((entry("q"), entry("k", bucket=1)), "k: in bucket 1 of 1"),
    ],
)
def test_any_other_manifest_is_refused_with_the_tensor_named(tensors: tuple[TensorEntry, ...], message: str) -> None:
    with pytest.raises(WeightSyncError, match=message) as caught:
        check_manifest(manifest(*tensors), expected("q", "k"))
    assert caught.value.stage == "manifest"


def test_every_bucket_needs_a_hash() -> None:
    with pytest.raises(WeightSyncError, match="1 bucket sizes, 0 hashes"):
        check_manifest(manifest(entry("q"), bucket_hashes=()), expected("q"))


@pytest.mark.parametrize("received", [["q"], ["q", "q"], ["q", "k", "k"], []])
def test_each_worker_must_have_received_every_tensor_once(received: list[str]) -> None:
    wanted = manifest(entry("q"), entry("k"))
    check_received(wanted.tensors, [["k", "q"], ["q", "k"]])
    with pytest.raises(WeightSyncError, match="worker 1 received") as caught:
        check_received(wanted.tensors, [["q", "k"], received])
    assert caught.value.stage == "load"


def test_parts_of_a_tensor_add_up_over_workers_modulo_2_to_the_64() -> None:
    wanted = manifest(entry("q", fingerprint=4, column_fingerprint=None))
    reports = [[used("q", TOP, shard=0, shards=2)], [used("q", 5, shard=1, shards=2)]]
    assert check_in_use(wanted, reports) == (1, 0)


def test_columns_are_compared_with_the_column_fingerprint() -> None:
    columns = [used("q", 10, kind="columns", shard=i, shards=3) for i in range(3)]
    assert check_in_use(manifest(entry("q")), [[c] for c in columns]) == (0, 1)


def test_workers_that_hold_the_same_kv_heads_count_once() -> None:
    """Four workers, two kv heads: neighbours hold copies."""
    reports = [[used("k", value, shard=rank // 2, shards=2)] for rank, value in enumerate((60, 60, 40, 40))]
    assert check_in_use(manifest(entry("k")), reports) == (1, 0)


def test_copies_that_differ_name_both_workers() -> None:
    with pytest.raises(WeightSyncError, match="workers 0 and 1 hold the same elements in m, and differ"):
        check_in_use(manifest(entry("norm")), [[used("norm", 100)], [used("norm", 99)]])


def test_a_stale_tied_head_is_seen_although_the_embedding_is_right() -> None:
    wanted = manifest(entry("embed"))
    head = used("embed", 29, module="lm_head", kind="columns")
    with pytest.raises(WeightSyncError, match="embed: columns in use in lm_head hash to 29, published 30") as caught:
        check_in_use(wanted, [[used("embed", 100, module="embed"), head]])
    assert caught.value.stage == "verify"
    assert check_in_use(wanted, [[used("embed", 100, module="embed"), replace(head, fingerprint=30)]]) == (1, 1)


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([[used("q", 100)]], "no worker reports k"),
        ([[used("q", 100), used("k", 100, shards=2)]], r"k: no worker reports part 1"),
        ([[used("q", 100), used("k", 100), used("v", 1)]], "m uses v, which the manifest does not hold"),
        ([[used("q", 100), used("k", 50, shards=2)], [used("k", 50)]], "k: workers cut it in different ways"),
    ],
)
def test_what_nobody_vouches_for_is_not_verified(reports: list[list[Observation]], message: str) -> None:
    with pytest.raises(WeightSyncError, match=message):
        check_in_use(manifest(entry("q"), entry("k")), reports)
