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
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    frozen_buckets: int = 0
    """The first buckets, which hold weights that no step changes: with `weight_sync.lora: adapter` all but the
    adapter. An engine that has them is not given them again."""
    frozen_version: int | None = None
    """Version at which those were packed, which seeds their columns; None: there are none."""
    delta_bases: tuple[int | None, ...] = ()
    """Hash of the earlier bucket that each bucket's delta starts from; None, or nothing at all: there is no delta."""

    @property
    def total_bytes(self) -> int:
        """Bytes on the wire."""
        return sum(self.bucket_sizes)

    @property
    def column_seed(self) -> int:
        """What `sampled_columns` takes for a version. Adapters are never packed, so they have no columns."""
        return self.version if self.frozen_version is None else self.frozen_version

    @property
    def frozen_hashes(self) -> tuple[int, ...]:
        """Of the first `frozen_buckets` buckets."""
        return self.bucket_hashes[: self.frozen_buckets]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """A manifest and the references to its buckets, in order; the loop holds it for generators that join late."""

    manifest: Manifest
    buckets: tuple[Any, ...]
    """ray.ObjectRef of one (nbytes,) uint8 array each."""
    deltas: tuple[Any, ...] = ()
    """ray.ObjectRef of a (nbytes,) uint8 array (`bucket_delta.py`) for each bucket that has one, None for others."""
    sender: Any = None
    """The Ray actor that broadcasts the buckets to whoever asks while the learner is idle; None: nobody does. They are
    in the object store in any case."""

    def in_store_only(self) -> PublishedWeights:
        """The same, for installs that nobody sends to: later ones, and those that follow a refusal."""
        return replace(self, sender=None)

    def delta(self, index: int) -> tuple[int, Any] | None:
        """Hash of the bucket that it starts from, and the reference; None: there is none."""
        base = self.manifest.delta_bases[index] if self.manifest.delta_bases else None
        return None if base is None else (base, self.deltas[index])


def assemble(
    manifest: Manifest, refs: Sequence[Any], frozen: Sequence[Any] = (), sender: Any = None
) -> PublishedWeights:
    """Weights from references in the order of packing: each bucket, followed by its delta where it has one.

    Args:
        frozen: of the buckets that were packed with an earlier version.
        sender: as in `PublishedWeights`.
    """
    upcoming = iter([*frozen, *refs])
    buckets, deltas = [], []
    for index in range(len(manifest.bucket_sizes)):
        buckets.append(next(upcoming))
        has_delta = bool(manifest.delta_bases) and manifest.delta_bases[index] is not None
        deltas.append(next(upcoming) if has_delta else None)
    return PublishedWeights(manifest=manifest, buckets=tuple(buckets), deltas=tuple(deltas), sender=sender)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """What one generator reports of a committed version."""

    generator: str
    version: int
    paused_seconds: float
    """From pause to resume: no token was sampled meanwhile."""
    load_seconds: float
    """Buckets to tensors in place, packing included."""
    packing_seconds: float
    """Copies that the CPU's matrix kernels multiply by; 0 where vLLM's own loader makes them."""
    verify_seconds: float
    """Fingerprints of what is used, and the canary."""
    total_bytes: int
    fetched_bytes: int
    """What was brought here; less than the total where deltas sufficed."""
    broadcast_bytes: int
    """Of what was loaded, what came by broadcast; the rest came through the object store."""
    broadcast_broken: str
    """Why the broadcast broke, so that all came through the object store; empty: it did not, or there was none."""
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
