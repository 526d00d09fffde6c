"""Published weights made from a model in this process, as the learner makes them, for tests of generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from funicular.actors.fingerprint import column_fingerprint, fingerprint
from funicular.actors.weights import (
    ALIGNMENT,
    Canary,
    Manifest,
    PublishedWeights,
    TensorEntry,
    sampled_columns,
)


class FakeRef:
    """Stands for a Ray object reference: may be awaited any number of times."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Any:
        yield from ()
        return self.value


def publish(
    model: Any,
    version: int,
    *,
    dtype: torch.dtype = torch.float32,
    columns: int = 8,
    bucket_bytes: int = 100_000,
    canary_tokens: int = 32,
) -> PublishedWeights:
    """Pack a transformers model. Buckets end wherever the next tensor does not fit, inside a layer too."""
    named = [(name, p.detach().to(dtype).contiguous()) for name, p in model.named_parameters()]
    entries, buckets = _pack(named, version, columns, bucket_bytes)
    manifest = Manifest(
        version=version,
        tensors=tuple(entries),
        bucket_sizes=tuple(bucket.nbytes for bucket in buckets),
        bucket_hashes=tuple(xxhash.xxh3_64_intdigest(bucket) for bucket in buckets),
        columns=columns,
        canary=canary(model, canary_tokens),
    )
    return PublishedWeights(manifest=manifest, buckets=tuple(map(FakeRef, buckets)))


def canary(model: Any, tokens: int) -> Canary:
    """A text of arbitrary tokens and what the model says of it."""
    token_ids = [7 + (13 * i) % 200 for i in range(tokens)]
    logprobs = token_logprobs(model, token_ids)
    return Canary(token_ids=tuple(token_ids), logprobs=tuple(logprobs.tolist()))


def token_logprobs(model: Any, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """(len - 1,) log-probability of each token but the first, by a plain forward pass."""
    ids = torch.tensor([list(token_ids)])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


def _pack(
    named: Sequence[tuple[str, torch.Tensor]], version: int, columns: int, bucket_bytes: int
) -> tuple[list[TensorEntry], list[np.ndarray]]:
    entries: list[TensorEntry] = []
    buckets: list[bytearray] = [bytearray()]
    for name, tensor in named:
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        if buckets[-1] and len(buckets[-1]) + len(data) > bucket_bytes:
            buckets.append(bytearray())
        matrix = tensor.ndim == 2
        entries.append(
            TensorEntry(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                bucket=len(buckets) - 1,
                offset=len(buckets[-1]),
                nbytes=len(data),
                fingerprint=fingerprint(tensor),
                column_fingerprint=(
                    column_fingerprint(tensor, sampled_columns(tensor.shape[1], version, columns)) if matrix else None
                ),
            )
        )
        buckets[-1] += data + bytes(-len(data) % ALIGNMENT)
    return entries, [np.frombuffer(bytes(bucket), dtype=np.uint8) for bucket in buckets]
