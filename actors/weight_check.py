"""Does an engine hold the published weights? Pure: compares manifests with what engine workers report (law 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from funicular.actors.weights import ALIGNMENT, Manifest, TensorEntry, WeightSyncError

_MODULUS = 1 << 64
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """What an engine needs of one tensor; its name is the checkpoint's."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one engine worker uses of one tensor."""

    tensor: str
    module: str
    """Where it is used. A tied head reports the embedding's tensor from a module of its own."""
    kind: Literal["elements", "columns"]
    """All elements of a parameter, or the sampled columns of a packed matrix."""
    shard: int
    shards: int
    """The tensor is cut into `shards` parts, of which this is number `shard`; several workers may hold it."""
    fingerprint: int


def check_manifest(manifest: Manifest, expected: Sequence[ExpectedTensor]) -> None:
    """Compare a manifest with what the engine needs, before anything is touched.

    Raises:
        WeightSyncError: at `manifest`, naming the tensor or bucket, what it has and what was expected.
    """
    wanted = {tensor.name: tensor for tensor in expected}
    names = [entry.name for entry in manifest.tensors]
    if len(set(names)) != len(names):
        raise _refused(f"{_some(n for n in set(names) if names.count(n) > 1)}: listed more than once")
    if missing := sorted(set(wanted) - set(names)):
        raise _refused(f"missing {_some(missing)}; the engine needs {len(wanted)} tensors")
    if unknown := sorted(set(names) - set(wanted)):
        raise _refused(f"unknown {_some(unknown)}; the engine has {len(wanted)} tensors and none of that name")
    for entry in manifest.tensors:
        _check_entry(entry, wanted[entry.name], manifest)
    if len(manifest.bucket_sizes) != len(manifest.bucket_hashes):
        raise _refused(f"{len(manifest.bucket_sizes)} bucket sizes, {len(manifest.bucket_hashes)} hashes")


def _check_entry(entry: TensorEntry, wanted: ExpectedTensor, manifest: Manifest) -> None:
    for what, got, want in (
        ("shape", entry.shape, wanted.shape),
        ("dtype", entry.dtype, wanted.dtype),
        ("bytes", entry.nbytes, _product(wanted.shape) * _BYTES[wanted.dtype]),
        ("offset modulo the alignment", entry.offset % ALIGNMENT, 0),
    ):
        if got != want:
            raise _refused(f"{entry.name}: {what} {got}, the engine needs {want}")
    if not 0 <= entry.bucket < len(manifest.bucket_sizes):
        raise _refused(f"{entry.name}: in bucket {entry.bucket} of {len(manifest.bucket_sizes)}")
    if entry.offset + entry.nbytes > manifest.bucket_sizes[entry.bucket]:
        raise _refused(f"{entry.name}: ends beyond its bucket of {manifest.bucket_sizes[entry.bucket]} bytes")


def check_received(sent: Sequence[TensorEntry], received_by_worker: Sequence[Sequence[str]]) -> None:
    """Every worker loaded every tensor that was sent, and each once.

    Raises:
        WeightSyncError: at `load`; the engine itself would go on with a mixture of old and new weights.
    """
    names = sorted(entry.name for entry in sent)
    for rank, received in enumerate(received_by_worker):
        if sorted(received) != names:
            lost = sorted(set(names) - set(received))
            raise WeightSyncError(
                "load", f"worker {rank} received {len(received)} tensors of {len(names)}: {_some(lost)}"
            )


def check_in_use(manifest: Manifest, observed_by_worker: Sequence[Sequence[Observation]]) -> tuple[int, int]:
    """Compare what the workers use with the manifest's fingerprints.

    Returns:
        Number of parameters of which every element was checked; number of packed matrices whose columns were.

    Raises:
        WeightSyncError: at `verify`, naming tensor, module and workers.
    """
    uses: dict[tuple[str, str, str], list[tuple[int, Observation]]] = defaultdict(list)
    for rank, observations in enumerate(observed_by_worker):
        for observation in observations:
            uses[observation.tensor, observation.module, observation.kind].append((rank, observation))
    entries = {entry.name: entry for entry in manifest.tensors}
    for (tensor, module, kind), reports in uses.items():
        if tensor not in entries:
            raise WeightSyncError("verify", f"{module} uses {tensor}, which the manifest does not hold")
        entry = entries[tensor]
        published = entry.fingerprint if kind == "elements" else entry.column_fingerprint
        used = _add_up(tensor, module, kind, reports)
        if used != published:
            raise WeightSyncError(
                "verify",
                f"{tensor}: {kind} in use in {module} hash to {used}, published {published} "
                f"(workers {_some(str(rank) for rank, _ in reports)})",
            )
    if unchecked := sorted(set(entries) - {tensor for tensor, _, _ in uses}):
        raise WeightSyncError("verify", f"no worker reports {_some(unchecked)}")
    kinds = [kind for _, _, kind in uses]
    return kinds.count("elements"), kinds.count("columns")


def _add_up(tensor: str, module: str, kind: str, reports: Sequence[tuple[int, Observation]]) -> int:
    """The whole tensor's fingerprint. Workers that hold the same part must agree; every part must be there."""
    parts: dict[int, tuple[int, int]] = {}
    shards = {observation.shards for _, observation in reports}
    if len(shards) != 1:
        raise WeightSyncError("verify", f"{tensor}: workers cut it in different ways, {sorted(shards)} parts")
    for rank, observation in reports:
        first, value = parts.setdefault(observation.shard, (rank, observation.fingerprint))
        if value != observation.fingerprint:
            raise WeightSyncError(
                "verify", f"{tensor}: workers {first} and {rank} hold the same {kind} in {module}, and differ"
            )
    if absent := sorted(set(range(shards.pop())) - set(parts)):
        raise WeightSyncError("verify", f"{tensor}: no worker reports part {_some(map(str, absent))} in {module}")
    return sum(value for _, value in parts.values()) % _MODULUS


def _refused(detail: str) -> WeightSyncError:
    return WeightSyncError("manifest", detail)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
