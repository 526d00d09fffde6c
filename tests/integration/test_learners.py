"""The learner group on real Ray and DeepSpeed: what the loop sees of steps, losses and deaths. One minute."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from funicular.actors.config import AlgorithmConfig, LearnerConfig, WeightSyncConfig
from funicular.actors.errors import LearnerLost, PayloadsLost, RunStopped
from funicular.actors.learners import LearnerGroup
from funicular.actors.types import GroupPayload, ScoredGroup
from funicular.actors.weights import Manifest, PublishedWeights
from funicular.rewards.config import RewardConfig
from tests.builders import make_group, make_payload
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

LENGTHS = [4, 7, 2, 9]


@ray.remote
class FakeGenerator:
    """Puts payloads, and takes them along when it dies."""

    def put(self, payload: GroupPayload) -> list[Any]:
        return [ray.put(payload)]


def scored(group_id: str, payload: Any) -> ScoredGroup:
    return make_group(group_id, rewards_G=[1.0, 0.0, 0.0, 1.0], lengths_G=LENGTHS, payload=payload)


def batch() -> list[ScoredGroup]:
    return [scored(name, ray.put(make_payload(name, lengths_G=LENGTHS))) for name in ("a", "b", "c")]


def lost_group() -> ScoredGroup:
    generator = FakeGenerator.remote()
    # Large, because Ray sends small objects along with their references.
    payload = replace(make_payload("lost", lengths_G=LENGTHS), prompt_ids=np.zeros(300_000, dtype=np.int32))
    (ref,) = ray.get(generator.put.remote(payload), timeout=60)
    ray.kill(generator)
    time.sleep(1)
    return scored("lost", ref)


def bytes_of(published: PublishedWeights) -> list[bytes]:
    return [bucket.tobytes() for bucket in ray.get(list(published.buckets), timeout=60)]


async def test_a_learner_group_trains_publishes_dies_and_comes_back(local_ray: None, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    learners = LearnerGroup(
        LearnerConfig(ranks=2, zero_stage=3, learning_rate=1e-2, micro_batch_tokens=60, cpu_threads=1),
        AlgorithmConfig(),
        WeightSyncConfig(),
        wire_dtype="float32",
        temperature=1.0,
        max_completion_tokens=16,
        model_folder=str(model),
        seed=0,
        use_gpu=False,
        rewards=RewardConfig(),
    )
    await learners.start()
    await learners.check_folder(tmp_path)
    assert not list(tmp_path.glob(".seen*"))
    with pytest.raises(ValueError, match=r"run_dir: learner rank [01] on .* cannot write to .*/none .*all nodes share"):
        await learners.check_folder(tmp_path / "none")
    initial = await learners.pack(0)
    assert isinstance(initial.manifest, Manifest)
    assert len(initial.buckets) == len(initial.manifest.bucket_sizes)
    result = await learners.step(1, batch())
    assert result.metrics["policy/optimizer_steps"] == 1
    trained = bytes_of(await learners.pack(1))
    assert trained != bytes_of(initial)
    snapshot = str(tmp_path / "snapshot")
    await learners.save(snapshot)

    with pytest.raises(PayloadsLost) as lost:
        await learners.step(2, [*batch(), lost_group()])
    assert lost.value.group_ids == ("lost",)
    assert bytes_of(await learners.pack(1)) == trained

    many = [scored(f"g{i}", ray.put(make_payload(f"g{i}", lengths_G=LENGTHS))) for i in range(400)]
    asyncio.get_running_loop().call_later(0.5, ray.kill, learners._actors[1])  # the other waits in a collective
    with pytest.raises(LearnerLost, match=r"rank 1"):
        await asyncio.wait_for(learners.step(2, many), 60)

    await learners.restart()
    assert bytes_of(await learners.pack(2)) == bytes_of(initial)
    await learners.load(snapshot)
    assert bytes_of(await learners.pack(3)) == trained

    ill = make_payload("ill", lengths_G=LENGTHS)
    poisoned = replace(ill, generator_logprobs=np.full_like(ill.generator_logprobs, np.nan))
    with pytest.raises(RunStopped, match="not finite"):
        await learners.step(2, [scored("ill", ray.put(poisoned))])
    learners.shutdown()
