"""Fingerprints of tensors that add up over shards: the sum modulo 2^64 of a hash of each element's bits.

Zero hashes to 0, so padding rows that an engine adds to a vocabulary change nothing. Order does not matter, so
fusing q, k and v or slicing over tensor-parallel workers only splits the sum.
"""

from __future__ import annotations

import torch

_CHUNK = 1 << 18
_MODULUS = 1 << 64


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
    total = 0
    for chunk in bits.split(_CHUNK):  # chunks stay in cache; whole tensors would make five passes over memory
        mixed = chunk.to(torch.int32, copy=True)
        mixed *= -1640531535  # 2654435761, the golden ratio's multiplier, as int32; products wrap
        mixed ^= mixed >> 15
        mixed *= -2048144777  # 2246822519
        mixed ^= mixed >> 13
        total += int(mixed.sum(dtype=torch.int64))
    return total % _MODULUS


def column_fingerprint(matrix: torch.Tensor, columns: list[int]) -> int:
    """Fingerprint of the given columns of a (rows, width) matrix, with -0 and subnormals as 0."""
    return values_fingerprint(matrix[:, columns])


def values_fingerprint(values: torch.Tensor) -> int:
    """Fingerprint of values as a matrix product returns them: it turns -0 into 0 and may flush subnormals."""
    return fingerprint(values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny, 0))
