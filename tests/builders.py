"""Groups for tests of the learner: random tokens, given rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from funicular.actors.types import GenerationRecord, GroupPayload, ScoredGroup
from funicular.actors.weights import SyncRecord
from funicular.rewards.types import Status, Task, Verdict


def make_payload(
    group_id: str,
    *,
    lengths_G: Sequence[int],
    prompt_tokens: int = 5,
    vocabulary: int = 300,
    version: int = 0,
    seed: int = 0,
) -> GroupPayload:
    """Random token ids from 3 up, and random log-probabilities around a uniform distribution's."""
    rng = np.random.default_rng([seed, *group_id.encode()])
    total = sum(lengths_G)
    return GroupPayload(
        group_id=group_id,
        prompt_ids=rng.integers(3, vocabulary, prompt_tokens, dtype=np.int32),
        token_ids=rng.integers(3, vocabulary, total, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths_G)]).astype(np.int64),
        generator_logprobs=rng.normal(-np.log(vocabulary), 0.3, total).astype(np.float32),
        token_versions=np.full(total, version, dtype=np.int32),
        texts=tuple("" for _ in lengths_G),
    )


def make_group(
    group_id: str,
    *,
    rewards_G: Sequence[float | None],
    lengths_G: Sequence[int],
    prompt_tokens: int = 5,
    truncated_G: Sequence[bool] | None = None,
    finite_G: Sequence[bool] | None = None,
    slot: int = 0,
    payload: Any = None,
) -> ScoredGroup:
    """A scored group; a reward of None makes an infra_error verdict."""
    size = len(rewards_G)
    verdicts = tuple(
        Verdict(reward=r, breakdown={"correct": r}, status=Status.INFRA_ERROR if r is None else Status.PASSED)
        for r in rewards_G
    )
    return ScoredGroup(
        group_id=group_id,
        slot=slot,
        task=Task(task_id=f"task-{group_id}", prompt="p", answer="a", verifier="math"),
        generation=GenerationRecord(
            group_id=group_id,
            generator="generator-0",
            prompt_tokens=prompt_tokens,
            lengths_G=tuple(lengths_G),
            truncated_G=tuple(truncated_G) if truncated_G is not None else (False,) * size,
            finite_G=tuple(finite_G) if finite_G is not None else (True,) * size,
            oldest_version=0,
            newest_version=0,
            seconds=1.0,
        ),
        verdicts_G=verdicts,
        payload=payload,
        scoring_seconds=0.1,
    )


def make_sync_record(generator: str, version: int) -> SyncRecord:
    """Of an install that moved nothing, in no time."""
    return SyncRecord(
        generator=generator,
        version=version,
        paused_seconds=0,
        load_seconds=0,
        packing_seconds=0,
        verify_seconds=0,
        total_bytes=0,
        fetched_bytes=0,
        broadcast_bytes=0,
        broadcast_broken="",
        canary_error=0,
        fingerprints_checked=0,
        columns_checked=0,
    )
