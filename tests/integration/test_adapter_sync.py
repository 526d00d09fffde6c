"""Engines that serve an adapter beside weights that they were sent once. Two minutes."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from funicular.actors import weight_packing
from funicular.actors.config import LearnerConfig, WeightSyncConfig
from funicular.actors.lora import add_adapters
from funicular.actors.served_adapter import served_adapter
from funicular.actors.weights import Manifest, PublishedWeights, WeightSyncError, assemble
from tests.engines import TOLERANCE, Engine, run_until_it_has_tokens, start, with_a_flipped_bit
from tests.publish_helpers import FakeRef, canary, token_logprobs

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SYNC = WeightSyncConfig(lora="adapter")
LONGER_THAN_A_BLOCK = "one two three four five six seven eight nine ten eleven twelve " * 4


class AdaptedLearner:
    """A transformers model with adapters that change, packed as a learner's rank packs it."""

    def __init__(self, folder: Path, config: LearnerConfig) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        add_adapters(self.model, config, 0, with_reference=False)
        self.version = 0

    def next_version(self) -> Any:
        """Change the adapters; a copy of the model."""
        self.version += 1
        torch.manual_seed(self.version)
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
        return copy.deepcopy(self.model)

    def pack(self, *, on: PublishedWeights | None = None, columns: int = 10_000) -> PublishedWeights:
        """Publish; `on` what was published before."""
        frozen, factors = weight_packing.split_adapter(self.model)
        *buckets, manifest = weight_packing.pack(
            factors,
            frozen=frozen,
            packed_before=on.manifest if on else None,
            version=self.version,
            dtype=torch.float32,
            bucket_bytes=400_000,
            columns=columns,
            canary=lambda: canary(self.model, 32),
            packs=True,
        )
        assert isinstance(manifest, Manifest)
        kept = on.buckets[: manifest.frozen_buckets] if on else ()
        return assemble(manifest, [FakeRef(bucket) for bucket in buckets], kept)


class Served:
    """An engine, and the learner whose adapter it serves."""

    def __init__(self, engine: Engine, learner: AdaptedLearner) -> None:
        self.engine = engine
        self.learner = learner
        self.published: PublishedWeights | None = None

    def next_weights(self) -> PublishedWeights:
        """A new version, which builds on the last one."""
        model = self.learner.next_version()
        self.engine.version = self.learner.version
        self.engine.models[self.learner.version] = model
        self.published = self.learner.pack(on=self.published)
        return self.published

    async def assert_serves(self) -> None:
        """What is generated has the log-probabilities of the adapted model, whatever the prefix cache holds."""
        record, payload = await self.engine.generate(text=LONGER_THAN_A_BLOCK, temperature=1.0)
        assert record.oldest_version == self.learner.version
        assert len(payload.prompt_ids) > 32, "a block of the cache"
        self.engine.assert_says_what_models_say(payload, 1.0)


async def serve(folder: Path, architecture: Any, config: LearnerConfig, **options: Any) -> Served:
    engine = await start(folder, architecture, adapter=served_adapter(config, SYNC), **options)
    return Served(engine, AdaptedLearner(folder, config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Tied llama, one worker, adapters of rank 4 on every linear layer; rank-stabilised scale."""
    config = LearnerConfig(lora_rank=4, lora_alpha=12.0, lora_rslora=True)
    running = await serve(tmp_path_factory.mktemp("llama"), "llama", config, tied=True)
    yield running
    await running.engine.generator.stop()


def adapter_bytes(weights: PublishedWeights) -> int:
    return sum(weights.manifest.bucket_sizes[weights.manifest.frozen_buckets :])


async def test_after_the_first_version_only_adapters_travel_and_every_element_is_the_learners(served: Served) -> None:
    weights = served.next_weights()
    record = await served.engine.install(weights)
    assert record.fetched_bytes == weights.manifest.total_bytes
    for _ in range(3):
        before = served.published
        weights = served.next_weights()
        record = await served.engine.install(weights)
        assert record.fetched_bytes == adapter_bytes(weights) < weights.manifest.total_bytes / 10
        assert weights.buckets[0] is before.buckets[0]
        assert record.canary_error < TOLERANCE
        assert record.columns_checked == 2 * 7 + 1, "all columns of what does not change"
        assert record.fingerprints_checked == 1 + 2 * 2 + 1 + 1 + 2 * 7 * 2, "and two factors of each adapted layer"
        await served.assert_serves()


async def test_what_is_served_is_the_merged_model_up_to_rounding(served: Served) -> None:
    await served.engine.install(served.next_weights())
    _, payload = await served.engine.generate(temperature=1.0)
    merged = AutoModelForCausalLM.from_pretrained(served.engine.folder, dtype=torch.float32)
    _, weights = weight_packing.merged(served.learner.model)
    merged.load_state_dict({weight.name: weight.value() for weight in weights}, strict=False)
    part = payload.completion(0)
    tokens = [*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]
    theirs = token_logprobs(merged, tokens)[len(payload.prompt_ids) - 1 :]
    np.testing.assert_allclose(payload.generator_logprobs[part], theirs, atol=TOLERANCE, rtol=0)
    unadapted = AutoModelForCausalLM.from_pretrained(served.engine.folder, dtype=torch.float32)
    assert np.abs(token_logprobs(unadapted, tokens)[len(payload.prompt_ids) - 1 :] - theirs).max() > 0.1


async def test_running_requests_go_on_with_the_new_adapter(served: Served) -> None:
    await served.engine.install(served.next_weights())
    old = served.engine.version
    group = await run_until_it_has_tokens(served.engine, count=4)
    await served.engine.install(served.next_weights())
    generation, payload = await group
    assert {generation.oldest_version, generation.newest_version} == {old, served.engine.version}
    served.engine.assert_says_what_models_say(payload)


async def test_a_damaged_adapter_is_refused_and_everything_is_loaded_again(served: Served) -> None:
    await served.engine.install(served.next_weights())
    weights = served.next_weights()
    last = len(weights.buckets) - 1
    with pytest.raises(WeightSyncError, match=f"bucket {last}: worker 0 sees bytes"):
        await served.engine.install(with_a_flipped_bit(weights, last))
    record = await served.engine.install(weights)
    assert record.fetched_bytes == weights.manifest.total_bytes
    await served.assert_serves()


@pytest.mark.parametrize("factor", ["0.self_attn.v_proj.lora_A", "1.mlp.up_proj.lora_B"])
async def test_factors_in_use_must_match_the_fingerprints(served: Served, factor: str) -> None:
    weights = served.next_weights()
    tensors = [replace(t, fingerprint=1) if factor in t.name else t for t in weights.manifest.tensors]
    with pytest.raises(WeightSyncError, match=factor) as caught:
        await served.engine.install(replace(weights, manifest=replace(weights.manifest, tensors=tuple(tensors))))
    assert caught.value.stage == "verify"
    await served.engine.install(weights)
    await served.assert_serves()


async def test_a_manifest_without_a_factor_is_refused(served: Served) -> None:
    await served.engine.install(served.next_weights())
    weights = served.next_weights()
    tensors = weights.manifest.tensors[:-1]
    with pytest.raises(WeightSyncError, match=r"missing model\.layers\.1\.mlp\.down_proj\.lora_B\.weight"):
        await served.engine.install(replace(weights, manifest=replace(weights.manifest, tensors=tensors)))
    await served.engine.install(weights)


async def test_two_workers_some_layers_and_an_engine_that_joins_late(tmp_path: Path) -> None:
    """Its first version builds on one that it never had."""
    config = LearnerConfig(lora_rank=8, lora_targets="q_proj, v_proj, o_proj, down_proj")
    served = await serve(tmp_path, "qwen2", config, tied=False, workers=2)
    try:
        served.next_weights()
        for joined in (False, True):
            weights = served.next_weights()
            record = await served.engine.install(weights)
            assert record.fetched_bytes == (adapter_bytes(weights) if joined else weights.manifest.total_bytes)
            assert weights.manifest.frozen_version == 1 < weights.manifest.version
            assert record.columns_checked == 2 * 7 + 1
            assert record.fingerprints_checked == 1 + 2 * (2 + 3) + 1 + 1 + 2 * 4 * 2
            await served.assert_serves()
    finally:
        await served.engine.generator.stop()
