"""The records of a published weight set, and the choices that learner and generators must make alike."""

import pickle

import pytest

from funicular.actors.weights import Canary, Manifest, WeightSyncError, canary_tolerance, sampled_columns


def test_sampled_columns_are_the_same_in_every_process() -> None:
    # Learner and generators draw them independently: a change here would fail every sync between two releases.
    assert sampled_columns(576, version=3, count=4) == [154, 213, 412, 569]


def test_sampled_columns_are_sorted_distinct_and_within_the_matrix() -> None:
    for version in range(20):
        columns = sampled_columns(10, version, 6)
        assert columns == sorted(set(columns))
        assert len(columns) == 6
        assert set(columns) <= set(range(10))


def test_every_version_checks_other_columns_and_in_time_all() -> None:
    assert sampled_columns(64, 1, 8) != sampled_columns(64, 2, 8)
    assert set().union(*(sampled_columns(64, version, 8) for version in range(60))) == set(range(64))


def test_more_columns_than_there_are_means_all() -> None:
    assert sampled_columns(5, 0, 100) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("dtype", "configured", "expected"),
    [("float32", None, 1e-3), ("bfloat16", None, 0.2), ("bfloat16", 0.02, 0.02), ("float32", 0.0, 0.0)],
)
def test_the_canary_tolerance_is_the_recipes_or_the_dtypes(
    dtype: str, configured: float | None, expected: float
) -> None:
    assert canary_tolerance(dtype, configured) == expected


def test_a_manifest_counts_its_bytes() -> None:
    manifest = Manifest(
        version=1,
        tensors=(),
        bucket_sizes=(64, 128),
        bucket_hashes=(1, 2),
        columns=8,
        canary=Canary(token_ids=(1, 2), logprobs=(-1.0,)),
    )
    assert manifest.total_bytes == 192


def test_a_sync_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(WeightSyncError("verify", "lm_head")))
    assert (error.stage, error.detail) == ("verify", "lm_head")
    assert str(error) == "weight sync failed at verify: lm_head"
