"""The learner's side of a publish: weights by their Hugging Face names, in buckets, hashed (law 2).

All ranks walk the same list of buckets, because gathering is a collective; only rank 0 packs. Never more than one
bucket is whole at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash

from funicular.actors.bucket_delta import encode
from funicular.actors.deepspeed_engine import gathered
from funicular.actors.fingerprint import column_fingerprint, fingerprint
from funicular.actors.lora import Adapter, adapters_by_weight, hugging_face_name, is_adapter_parameter
from funicular.actors.quantization import dense, dense_shape
from funicular.actors.weights import ALIGNMENT, Canary, Manifest, TensorEntry, sampled_columns

_LAYER = re.compile(r"^.*?\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of the published model, and what it is made of."""

    name: str
    parameter: torch.nn.Parameter
    adapter: Adapter | None
    scale: float = 1.0
    """Multiplies it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Whole shape, partitioned or not, quantized or not."""
        return dense_shape(self.parameter)

    @property
    def parts(self) -> list[torch.nn.Parameter]:
        """What must be gathered before `value`."""
        return [self.parameter, *(self.adapter.parts if self.adapter else ())]

    def value(self) -> torch.Tensor:
        """The tensor, adapters merged in float32."""
        data = dense(self.parameter)
        if self.scale != 1.0:
            data = data.float() * self.scale
        return self.adapter.merge(data).detach() if self.adapter else data


def weights_of(causal_lm: Any) -> list[Weight]:
    """The published tensors in the model's order. A tied output head comes with its embedding, so has none."""
    adapters = adapters_by_weight(causal_lm)
    named = [
        (hugging_face_name(name), parameter)
        for name, parameter in causal_lm.named_parameters()
        if not is_adapter_parameter(name)
    ]
    by_name = {hugging_face_name(name): adapter for name, adapter in adapters.items()}
    return [Weight(name=name, parameter=p, adapter=by_name.get(name)) for name, p in named]


def merged(causal_lm: Any) -> tuple[list[Weight], list[Weight]]:
    """No frozen weights; all that change, adapters merged."""
    return [], weights_of(causal_lm)


def split_adapter(causal_lm: Any) -> tuple[list[Weight], list[Weight]]:
    """The frozen weights without the adapter; the adapter's factors A, and B times the adapter's scale."""
    frozen, factors = [], []
    for weight in weights_of(causal_lm):
        frozen.append(replace(weight, adapter=None))
        if weight.adapter is not None:
            stem = weight.name.removesuffix(".weight")
            adapter = weight.adapter
            factors += [
                Weight(name=f"{stem}.lora_A.weight", parameter=adapter.a, adapter=None),
                Weight(name=f"{stem}.lora_B.weight", parameter=adapter.b, adapter=None, scale=adapter.scale),
            ]
    return frozen, factors


def cut_buckets(weights: Sequence[Weight], itemsize: int, bucket_bytes: int) -> list[list[Weight]]:
    """Cut the list into buckets of at most `bucket_bytes`, never inside a decoder layer; one unit at least."""
    buckets: list[list[Weight]] = []
    room = 0
    for unit in _units(weights):
        nbytes = sum(_aligned(math.prod(weight.shape) * itemsize) for weight in unit)
        if not buckets or nbytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1] += unit
        room -= nbytes
    return buckets


def pack(
    weights: Sequence[Weight],
    *,
    version: int,
    dtype: torch.dtype,
    bucket_bytes: int,
    columns: int,
    canary: Callable[[], Canary],
    packs: bool,
    frozen: Sequence[Weight] = (),
    packed_before: Manifest | None = None,
    earlier: Callable[[int], tuple[int, np.ndarray] | None] = lambda index: None,
) -> Iterator[np.ndarray | Manifest]:
    """Yield each bucket as (nbytes,) uint8, then the manifest. With `packs` false take part and yield nothing.

    Args:
        frozen: weights that no step changes; they stand in buckets of their own, before the others.
        packed_before: a manifest whose frozen buckets hold them: they are not packed again.
        earlier: hash and bytes of a bucket that was published before; it is followed by a delta, if that is shorter.
    """
    entries: list[TensorEntry] = []
    sizes: list[int] = []
    hashes: list[int] = []
    bases: list[int | None] = []
    cut = [cut_buckets(part, dtype.itemsize, bucket_bytes) for part in (frozen, weights)]
    frozen_buckets, frozen_version = len(cut[0]), version if frozen else None
    if packed_before is not None and packed_before.frozen_buckets:
        frozen_version = packed_before.frozen_version
        entries += [entry for entry in packed_before.tensors if entry.bucket < frozen_buckets]
        sizes += packed_before.bucket_sizes[:frozen_buckets]
        hashes += packed_before.frozen_hashes
        bases += [None] * frozen_buckets
        cut[0] = []
    for index, bucket in enumerate([*cut[0], *cut[1]], start=len(sizes)):
        buffer = None
        with gathered(part for weight in bucket for part in weight.parts):
            if packs:
                buffer, packed = _pack_bucket(bucket, index, version, dtype, columns)
                entries += packed
        if buffer is not None:
            sizes.append(buffer.nbytes)
            hashes.append(xxhash.xxh3_64_intdigest(buffer.data))
            yield buffer
            base, delta = _delta(buffer, earlier(index), dtype)
            bases.append(base)
            if delta is not None:
                yield delta
    said = canary()
    if packs:
        yield Manifest(
            version=version,
            tensors=tuple(entries),
            bucket_sizes=tuple(sizes),
            bucket_hashes=tuple(hashes),
            columns=columns,
            canary=said,
            frozen_buckets=frozen_buckets,
            frozen_version=frozen_version,
            delta_bases=tuple(bases),
        )


def _units(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Neighbours of the same decoder layer together, every other tensor alone."""
    last = None
    unit: list[Weight] = []
    for weight in weights:
        match = _LAYER.match(weight.name)
        layer = match.group() if match else None
        if unit and (layer is None or layer != last):
            yield unit
            unit = []
        unit.append(weight)
        last = layer
    if unit:
        yield unit


def _pack_bucket(
    bucket: Sequence[Weight], index: int, version: int, dtype: torch.dtype, columns: int
) -> tuple[np.ndarray, list[TensorEntry]]:
    sizes = [math.prod(weight.shape) * dtype.itemsize for weight in bucket]
    buffer = np.zeros(sum(map(_aligned, sizes)), dtype=np.uint8)
    flat = torch.from_numpy(buffer)
    entries = []
    offset = 0
    for weight, nbytes in zip(bucket, sizes, strict=True):
        tensor = flat[offset : offset + nbytes].view(dtype).view(weight.shape)
        value = weight.value()
        if value.is_cuda:  # rounded and hashed where it is, which takes a GPU no time
            value = value.to(dtype)
        tensor.copy_(value)
        hashed = value if value.is_cuda else tensor
        chosen = sampled_columns(weight.shape[1], version, columns) if len(weight.shape) == 2 else None
        entries.append(
            TensorEntry(
                name=weight.name,
                shape=weight.shape,
                dtype=str(dtype).removeprefix("torch."),
                bucket=index,
                offset=offset,
                nbytes=nbytes,
                fingerprint=fingerprint(hashed),
                column_fingerprint=None if chosen is None else column_fingerprint(hashed, chosen),
            )
        )
        offset += _aligned(nbytes)
    return buffer, entries


def _delta(
    bucket: np.ndarray, earlier: tuple[int, np.ndarray] | None, dtype: torch.dtype
) -> tuple[int | None, np.ndarray | None]:
    if earlier is None or earlier[1].shape != bucket.shape:
        return None, None
    delta = encode(bucket, earlier[1], dtype.itemsize)
    return (None, None) if delta is None else (earlier[0], delta)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
