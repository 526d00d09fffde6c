"""Fingerprints add up over shards, ignore order and padding, and see a single bit."""

import pytest
import torch

from funicular.actors import fingerprint as fingerprint_module
from funicular.actors.fingerprint import _by_operations, column_fingerprint, fingerprint, values_fingerprint

MODULUS = 1 << 64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def matrix(dtype: torch.dtype, rows: int = 70, width: int = 30) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)


@DTYPES
def test_shards_in_any_direction_add_up_to_the_whole(dtype: torch.dtype) -> None:
    whole = matrix(dtype)
    for dim in (0, 1):
        parts = torch.tensor_split(whole, 3, dim=dim)
        assert sum(fingerprint(part) for part in parts) % MODULUS == fingerprint(whole)


@DTYPES
def test_a_gpu_says_the_same_as_a_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner may stand on one and the generator on the other."""
    monkeypatch.setattr(fingerprint_module, "_CHUNK", 100_000)
    whole = matrix(dtype, rows=9000)  # three chunks
    bits = whole.view(torch.int16 if dtype == torch.bfloat16 else torch.int32).view(-1)
    assert _by_operations(bits) % MODULUS == fingerprint(whole)


@DTYPES
def test_fused_tensors_hash_to_the_sum_and_order_does_not_matter(dtype: torch.dtype) -> None:
    q, k = matrix(dtype), matrix(dtype, rows=20) * 2
    assert fingerprint(torch.cat([k, q])) == (fingerprint(q) + fingerprint(k)) % MODULUS


@DTYPES
def test_rows_of_zeros_change_nothing(dtype: torch.dtype) -> None:
    whole = matrix(dtype)
    assert fingerprint(torch.cat([whole, torch.zeros(5, 30, dtype=dtype)])) == fingerprint(whole)


@DTYPES
@pytest.mark.parametrize("bit", [0, 7, 14])
def test_one_flipped_bit_is_seen(dtype: torch.dtype, bit: int) -> None:
    whole = matrix(dtype)
    other = whole.clone()
    bits = other.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[3, 4] ^= 1 << bit
    assert fingerprint(other) != fingerprint(whole)


def test_tensors_of_several_chunks_hash_like_their_parts() -> None:
    long = torch.arange(600_000, dtype=torch.float32)
    assert fingerprint(long) == (fingerprint(long[:100]) + fingerprint(long[100:])) % MODULUS


def test_views_that_are_not_contiguous_hash_like_copies() -> None:
    whole = matrix(torch.float32)
    assert fingerprint(whole.T) == fingerprint(whole)
    assert column_fingerprint(whole, [3, 9]) == fingerprint(whole[:, [3, 9]].clone())


@DTYPES
def test_columns_ignore_what_a_matrix_product_does_not_keep(dtype: torch.dtype) -> None:
    plain = torch.tensor([[0.0, 1.5], [0.0, -2.0]], dtype=dtype)
    awkward = torch.tensor([[-0.0, 1.5], [torch.finfo(dtype).tiny / 4, -2.0]], dtype=dtype)
    assert column_fingerprint(awkward, [0, 1]) == values_fingerprint(plain) == fingerprint(plain)
    assert fingerprint(awkward) != fingerprint(plain)


def test_a_nan_is_not_taken_for_zero() -> None:
    assert values_fingerprint(torch.tensor([float("nan")])) != 0


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="float16"):
        fingerprint(torch.zeros(2, dtype=torch.float16))
