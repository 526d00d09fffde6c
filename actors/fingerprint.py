"""Fingerprints of tensors that add up over shards: the sum modulo 2^64 of a hash of each element's bits.

Zero hashes to 0, so padding rows that an engine adds to a vocabulary change nothing. Order does not matter, so
fusing q, k and v or slicing over tensor-parallel workers only splits the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_CHUNK = 1 << 24
"""Elements whose mix exists at once, on devices."""
_MODULUS = 1 << 64
_FIRST, _SECOND = -1640531535, -2048144777
"""2654435761, the golden ratio's multiplier, and 2246822519, as int32; products wrap."""


def fingerprint(tensor: torch.Tensor) -> int:
    """Sum modulo 2^64 over all elements of a 32-bit mix of their bits.

    Args:
        tensor: float32 or bfloat16, any shape.

    Raises:
        TypeError: for another dtype.
    """
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.float32:
        bits = flat.view(torch.int32)
    elif flat.dtype == torch.bfloat16:
        bits = flat.view(torch.int16)
    else:
        raise TypeError(f"fingerprint of {flat.dtype}: float32 or bfloat16 expected")
    total = int(_one_pass()(bits.numpy())) if bits.device.type == "cpu" else _by_operations(bits)
    return total % _MODULUS


def column_fingerprint(matrix: torch.Tensor, columns: list[int]) -> int:
    """Fingerprint of the given columns of a (rows, width) matrix, with -0 and subnormals as 0."""
    return values_fingerprint(matrix[:, columns])


def values_fingerprint(values: torch.Tensor) -> int:
    """Fingerprint of values as a matrix product returns them: it turns -0 into 0 and may flush subnormals."""
    return fingerprint(values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny, 0))


def _by_operations(bits: torch.Tensor) -> int:
    """On any device, one pass over a chunk for each operation; the device is waited for once."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)  # wraps at 2^64, as the sum shall
    for chunk in bits.split(_CHUNK):
        mixed = chunk.to(torch.int32, copy=True)
        mixed *= _FIRST
        mixed ^= mixed >> 15
        mixed *= _SECOND
        mixed ^= mixed >> 13
        total += mixed.sum(dtype=torch.int64)
    return int(total)


@functools.cache
def _one_pass() -> Callable[[np.ndarray], Any]:
    """The same on a CPU, four times as fast: compiled when first needed, which takes half a second."""
    import numba

    first, second = np.int32(_FIRST), np.int32(_SECOND)
    above, below = np.int32(15), np.int32(13)

    @numba.njit(nogil=True)
    def mixed_sum(bits: np.ndarray) -> np.int64:
        total = np.int64(0)
        for index in range(bits.size):
            mixed = np.int32(np.int32(bits[index]) * first)
            mixed = np.int32(np.int32(mixed ^ (mixed >> above)) * second)
            total += np.int64(np.int32(mixed ^ (mixed >> below)))
        return total

    return mixed_sum
