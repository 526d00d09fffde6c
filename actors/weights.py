"""A published weight set: its manifest, its buckets, and what can go wrong with it (law 2).

The learner packs tensors, by their Hugging Face names, into buckets of raw bytes; the manifest says what stands
where and what it hashes to. Two kinds of fingerprint travel with it:

* of bytes: `bucket_hashes`, checked before a bucket is loaded;
* of values: `TensorEntry.fingerprint` and `column_fingerprint` (`fingerprint.py`), checked against what the
  engine's workers *use* after loading. They are sums over elements, so the parts of a fused or sharded
  parameter add up to the whole.

No torch here: the loop imports this.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

ALIGNMENT = 64
"""Bytes; every tensor in a bucket starts at a multiple, so that it can be viewed as any dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a published weight set."""

    name: str
    """Hugging Face name, as in the model's safetensors files. A tied output head has no entry."""
    shape: tuple[int, ...]
    dtype: str
    """float32 or bfloat16: the type on the wire, which is the generators'."""
    bucket: int
    offset: int
    """Bytes from the start of the bucket, a multiple of ALIGNMENT."""
    nbytes: int
    fingerprint: int
    """Sum modulo 2^64 of each element's hash."""
    column_fingerprint: int | None
    """The same over the columns `sampled_columns(shape[1], …)` of a matrix; None for vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A fixed text and what the learner's new weights say of it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of token_ids[1:], at temperature 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a weight set consists of. Complete only when every bucket is packed."""

    version: int
    tensors: tuple[TensorEntry, ...]
    bucket_sizes: tuple[int, ...]
    """Bytes of each bucket."""
    bucket_hashes: tuple[int, ...]
    """xxh3_64 of each bucket's bytes."""
    columns: int
    """Number of columns sampled for the column fingerprints; `version` seeds which."""
    canary: Canary

    @property
    def total_bytes(self) -> int:
        """Bytes on the wire."""
        return sum(self.bucket_sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """A manifest and the references to its buckets, in order; the loop holds it for generators that join late."""

    manifest: Manifest
    buckets: tuple[Any, ...]
    """ray.ObjectRef of one (nbytes,) uint8 array each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """What one generator reports of a committed version."""

    generator: str
    version: int
    paused_seconds: float
    """From pause to resume: no token was sampled meanwhile."""
    load_seconds: float
    """Buckets to tensors in place."""
    verify_seconds: float
    """Fingerprints of what is used, and the canary."""
    total_bytes: int
    canary_error: float
    """Mean absolute difference of the canary's log-probabilities, nats."""
    fingerprints_checked: int
    """Parameters whose every element was checked."""
    columns_checked: int
    """Packed matrices whose sampled columns were read back."""


class WeightSyncError(RuntimeError):
    """A generator did not commit a version. `stage` says where: manifest, bucket, load, verify, canary."""

    def __init__(self, stage: str, detail: str) -> None:
        super().__init__(f"weight sync failed at {stage}: {detail}")
        self.stage = stage
        self.detail = detail

    def __reduce__(self) -> tuple[type[WeightSyncError], tuple[str, str]]:
        return (WeightSyncError, (self.stage, self.detail))


def sampled_columns(width: int, version: int, count: int) -> list[int]:
    """The columns, out of `width`, that learner and generators fingerprint at `version`: sorted, without repeats."""
    return sorted(random.Random(f"{version}/{width}").sample(range(width), min(count, width)))


def canary_tolerance(dtype: str, configured: float | None) -> float:
    """Largest mean absolute log-probability difference, nats, that a commit allows."""
    if configured is not None:
        return configured
    return 1e-3 if dtype == "float32" else 0.2
