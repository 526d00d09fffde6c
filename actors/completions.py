"""From finished completions to the records that cross actors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from funicular.actors.types import GenerationRecord, GroupPayload, ImageFeatures


@dataclass(slots=True)
class Completion:
    """One member of a group, as it grows."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    truncated: bool = False
    repeated: bool = False
    """Stopped because it repeated itself; such a completion is truncated too."""
    spans: list[tuple[str, int]] = field(default_factory=list)
    """(label, end) of each run of tokens that were sampled with the same weights."""


def pack_group(
    group_id: str,
    prompt_ids: Sequence[int],
    completions_G: Sequence[Completion],
    versions: Mapping[str, int],
    texts: tuple[str, ...],
    images: ImageFeatures | None = None,
) -> GroupPayload:
    """Pack a group; `versions` gives the policy version of each label.

    Raises:
        RuntimeError: tokens whose weights the engine did not tell.
    """
    versions_T: list[int] = []
    for completion in completions_G:
        start = 0
        for label, end in completion.spans:
            versions_T.extend([versions[label]] * (end - start))
            start = end
        if start != len(completion.token_ids):
            raise RuntimeError(f"{group_id}: {len(completion.token_ids)} tokens, weights known of {start}")
    return GroupPayload(
        group_id=group_id,
        prompt_ids=np.array(prompt_ids, dtype=np.int32),
        token_ids=np.array([t for c in completions_G for t in c.token_ids], dtype=np.int32),
        offsets=np.cumsum([0, *(len(c.token_ids) for c in completions_G)], dtype=np.int64),
        generator_logprobs=np.array([x for c in completions_G for x in c.logprobs], dtype=np.float32),
        token_versions=np.array(versions_T, dtype=np.int32),
        texts=texts,
        images=images,
    )


def describe_group(
    generator: str, payload: GroupPayload, completions_G: Sequence[Completion], seconds: float
) -> GenerationRecord:
    """What the loop is told of a packed group."""
    versions = payload.token_versions
    if versions is None:
        raise RuntimeError(f"{payload.group_id}: sampled tokens without versions")
    return GenerationRecord(
        group_id=payload.group_id,
        generator=generator,
        prompt_tokens=len(payload.prompt_ids),
        lengths_G=tuple(len(c.token_ids) for c in completions_G),
        truncated_G=tuple(c.truncated for c in completions_G),
        finite_G=tuple(all(map(math.isfinite, c.logprobs)) for c in completions_G),
        oldest_version=int(versions.min()),
        newest_version=int(versions.max()),
        seconds=seconds,
        repeated_G=tuple(c.repeated for c in completions_G),
    )
