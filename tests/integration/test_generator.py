"""A real engine receives weights: what it then says, what it refuses, and how it recovers. Four minutes."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import pytest_asyncio

from funicular.actors.bucket_delta import encode
from funicular.actors.delta_source import DeltaSource
from funicular.actors.errors import GroupFailed
from funicular.actors.weights import PublishedWeights, WeightSyncError
from tests.engines import LONG, TOLERANCE, Engine, run_until_it_has_tokens, start, with_a_flipped_bit
from tests.publish_helpers import FakeRef, publish

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """Tied llama, one worker."""
    running = await start(tmp_path_factory.mktemp("llama"), "llama", tied=True)
    yield running
    await running.generator.stop()


class FakeNeverRef:
    """A bucket that does not arrive."""

    def __await__(self) -> Any:
        return asyncio.sleep(3600).__await__()


async def test_nothing_is_generated_before_weights_are_committed(engine: Engine) -> None:
    assert engine.generator.committed_version is None
    with pytest.raises(RuntimeError, match="before any weights were committed"):
        await engine.generate()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_after_a_sync_logprobs_are_those_of_the_new_weights(engine: Engine, temperature: float) -> None:
    record = await engine.install(engine.next_weights())
    generation, payload = await engine.generate(temperature=temperature)

    engine.assert_says_what_models_say(payload, temperature or 1.0)
    assert record.canary_error < TOLERANCE
    assert record.columns_checked == 2 * 7 + 1, "every matrix of two layers, and the tied head's packed copy"
    assert set(payload.token_versions.tolist()) == {engine.version} == {generation.newest_version}
    assert generation.lengths_G == tuple(np.diff(payload.offsets))
    assert generation.finite_G == (True, True)


async def test_all_columns_of_what_is_used_are_bit_equal(engine: Engine) -> None:
    record = await engine.install(engine.next_weights(columns=10_000))
    assert record.columns_checked == 2 * 7 + 1
    assert record.fingerprints_checked == 1 + 2 * 2 + 1 + 1, "embedding, norms, and the head's shared parameter"


async def test_deltas_bring_what_changed_bit_for_bit(engine: Engine) -> None:
    installer = engine.generator._installer
    installer._buckets, before = DeltaSource(), installer._buckets
    try:
        earlier = engine.next_weights()
        assert (await engine.install(earlier)).fetched_bytes == earlier.manifest.total_bytes
        engine.version += 1
        model = copy.deepcopy(engine.models[engine.version - 1])
        for parameter in model.parameters():
            parameter.data[..., :5] += 0.1
        engine.models[engine.version] = model
        weights = publish(model, engine.version, columns=10_000)
        deltas = [encode(new.value, old.value, 4) for new, old in zip(weights.buckets, earlier.buckets, strict=True)]
        bases = tuple(earlier.manifest.bucket_hashes[i] if d is not None else None for i, d in enumerate(deltas))
        manifest = replace(weights.manifest, delta_bases=bases)
        record = await engine.install(replace(weights, manifest=manifest, deltas=tuple(map(FakeRef, deltas))))
    finally:
        installer._buckets = before
    assert record.fetched_bytes < weights.manifest.total_bytes / 2
    assert record.columns_checked == 2 * 7 + 1
    engine.assert_says_what_models_say((await engine.generate())[1])


async def test_completions_say_why_they_ended_and_texts_match_tokens(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    generation, payload = await engine.generate(count=4, temperature=1.0)
    from funicular.actors.prompts import load_tokenizer

    tokenizer = load_tokenizer(str(engine.folder))
    for i, truncated in enumerate(generation.truncated_G):
        tokens = payload.token_ids[payload.completion(i)].tolist()
        assert truncated == (len(tokens) == LONG and tokens[-1] != tokenizer.eos_token_id)
        assert payload.texts[i] == tokenizer.decode(tokens, skip_special_tokens=True)


async def test_running_requests_go_on_with_new_weights_and_say_which_token_is_whose(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    old = engine.version
    group = await run_until_it_has_tokens(engine, count=4)
    await engine.install(engine.next_weights())
    generation, payload = await group

    assert {generation.oldest_version, generation.newest_version} == {old, engine.version}
    engine.assert_says_what_models_say(payload)


@pytest.mark.parametrize(("mode", "versions"), [("finish_first", "old"), ("start_again", "new")])
async def test_running_requests_finish_on_old_weights_or_begin_anew_if_the_recipe_says_so(
    engine: Engine, mode: Literal["finish_first", "start_again"], versions: str
) -> None:
    await engine.install(engine.next_weights())
    old = engine.version
    generator, before = engine.generator, engine.generator._config
    generator._config = generator._installer._config = replace(before, update_mode=mode)
    try:
        group = await run_until_it_has_tokens(engine, count=4)
        await engine.install(engine.next_weights())
        _, payload = await group
    finally:
        generator._config = generator._installer._config = before
    of_each = [set(payload.token_versions[payload.completion(i)].tolist()) for i in range(4)]
    assert all(len(of_one) == 1 for of_one in of_each), "no completion goes on with other weights"
    if versions == "old":
        assert of_each == [{old}] * 4
    else:
        assert {engine.version} in of_each, "some may have ended before the update"
    engine.assert_says_what_models_say(payload)
    assert (await engine.generate())[0].oldest_version == engine.version


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 5_000], ids=["one bucket", "layers split over buckets"])
async def test_a_corrupted_bucket_is_refused_and_a_resend_heals(engine: Engine, bucket_bytes: int) -> None:
    await engine.install(engine.next_weights())
    old = engine.version
    group = await run_until_it_has_tokens(engine, count=4)
    weights = engine.next_weights(bucket_bytes=bucket_bytes)
    # With small buckets q and k have arrived then, and the fused layer is half received.
    spoilt = next(t.bucket for t in weights.manifest.tensors if t.name == "model.layers.0.self_attn.v_proj.weight")
    with pytest.raises(WeightSyncError) as caught:
        await engine.install(with_a_flipped_bit(weights, spoilt))
    assert caught.value.stage == "bucket"
    assert engine.generator.committed_version == old
    assert (await engine.generator.health())["state"] == "unverified"
    late = asyncio.create_task(engine.generate(count=1))
    await asyncio.sleep(1.0)
    assert not group.done()
    assert not late.done(), "nothing is generated until the version is sent again"

    await engine.install(weights)
    for generation, payload in (await group, await late):
        assert generation.newest_version == engine.version
        engine.assert_says_what_models_say(payload)


async def test_a_lost_bucket_is_a_bucket_error_and_leaves_no_file(engine: Engine) -> None:
    class LostRef:
        def __await__(self) -> Any:
            raise RuntimeError("owner died")
            yield

    weights = engine.next_weights()
    before = memory_files()
    with pytest.raises(WeightSyncError, match="owner died") as caught:
        await engine.install(replace(weights, buckets=(weights.buckets[0], LostRef(), *weights.buckets[2:])))
    assert caught.value.stage == "bucket"
    assert memory_files() == before
    await engine.install(weights)


async def test_a_bucket_that_never_arrives_meets_the_deadline_and_a_resend_heals(engine: Engine) -> None:
    weights = engine.next_weights()
    installer = engine.generator._installer
    patient, installer._sync = installer._sync, replace(installer._sync, deadline_s=2.0)
    try:
        with pytest.raises(WeightSyncError, match="not done within 2 s") as caught:
            await engine.install(replace(weights, buckets=(*weights.buckets[:-1], FakeNeverRef())))
    finally:
        installer._sync = patient
    assert caught.value.stage == "bucket"
    await engine.install(weights)


def memory_files() -> int:
    """How many this process holds open."""
    return sum("memfd:funicular" in os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())


def without_a_tensor(weights: PublishedWeights) -> PublishedWeights:
    return replace(weights, manifest=replace(weights.manifest, tensors=weights.manifest.tensors[:-1]))


def with_a_transposed_tensor(weights: PublishedWeights) -> PublishedWeights:
    tensors = [replace(t, shape=t.shape[::-1]) if "up_proj" in t.name else t for t in weights.manifest.tensors]
    return replace(weights, manifest=replace(weights.manifest, tensors=tuple(tensors)))


def with_an_unknown_name(weights: PublishedWeights) -> PublishedWeights:
    tensors = (
        *weights.manifest.tensors,
        replace(weights.manifest.tensors[0], name="model.layers.9.foo.weight"),
    )
    return replace(weights, manifest=replace(weights.manifest, tensors=tensors))


def of_an_older_version(weights: PublishedWeights) -> PublishedWeights:
    return replace(weights, manifest=replace(weights.manifest, version=0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_tensor, "missing model.norm.weight"),
        (with_a_transposed_tensor, "up_proj.weight: shape"),
        (with_an_unknown_name, "unknown model.layers.9.foo.weight"),
        (of_an_older_version, "version 0 is older than"),
    ],
)
async def test_an_impossible_manifest_is_refused_before_the_engine_is_touched(
    engine: Engine, spoil: Any, message: str
) -> None:
    await engine.install(engine.next_weights())
    good = engine.version
    with pytest.raises(WeightSyncError, match=message) as caught:
        await engine.install(spoil(engine.next_weights()))
    assert caught.value.stage == "manifest"
    assert (await engine.generator.health())["state"] == "serving"
    generation, payload = await engine.generate()
    assert generation.newest_version == good
    engine.assert_says_what_models_say(payload)


@pytest.mark.parametrize("field", ["fingerprint", "column_fingerprint"])
async def test_what_is_used_must_match_the_fingerprints(engine: Engine, field: str) -> None:
    weights = engine.next_weights()
    tensors = [
        replace(t, **{field: 1}) if t.name == "model.embed_tokens.weight" else t for t in weights.manifest.tensors
    ]
    with pytest.raises(WeightSyncError, match=r"model\.embed_tokens\.weight") as caught:
        await engine.install(replace(weights, manifest=replace(weights.manifest, tensors=tuple(tensors))))
    assert caught.value.stage == "verify"
    await engine.install(weights)
    engine.assert_says_what_models_say((await engine.generate())[1])


async def test_a_rejected_canary_takes_the_running_groups_with_it_and_a_resend_heals(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    group = await run_until_it_has_tokens(engine, count=4)
    weights = engine.next_weights()
    wrong = replace(weights.manifest.canary, logprobs=tuple(x - 1 for x in weights.manifest.canary.logprobs))
    with pytest.raises(WeightSyncError) as caught:
        await engine.install(replace(weights, manifest=replace(weights.manifest, canary=wrong)))
    assert caught.value.stage == "canary"
    with pytest.raises(GroupFailed) as failed:
        await group
    assert failed.value.reason == "weights_rejected"
    late = asyncio.create_task(engine.generate(count=1))
    await asyncio.sleep(1.0)
    assert not late.done(), "nothing is generated with rejected weights"

    await engine.install(weights)
    generation, payload = await late
    assert generation.oldest_version == engine.version
    engine.assert_says_what_models_say(payload)


async def test_an_attempt_cannot_be_repeated(engine: Engine) -> None:
    weights = engine.next_weights()
    await engine.install(weights)
    with pytest.raises(WeightSyncError, match="was made before"):
        await engine.generator.install(weights, engine.attempt)


async def test_abort_all_fails_running_and_waiting_groups_with_the_reason(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    running = await run_until_it_has_tokens(engine, count=8)
    waiting = asyncio.create_task(engine.generate(count=2))
    await asyncio.sleep(0.1)
    await engine.generator.abort_all("rolled_back")
    for group in (running, waiting):
        with pytest.raises(GroupFailed) as failed:
            await group
        assert failed.value.reason == "rolled_back"
    engine.assert_says_what_models_say((await engine.generate(count=1))[1])


async def test_a_prompt_that_is_too_long_is_not_tried_again(engine: Engine) -> None:
    with pytest.raises(GroupFailed) as failed:
        await engine.generate(text="word " * 100)
    assert failed.value.reason == "prompt_too_long"
    assert not failed.value.retry_task


async def test_a_model_that_goes_through_vllms_own_loader_is_right_and_heals_too(tmp_path: Path) -> None:
    engine = await start(tmp_path, "mistral", tied=True)
    try:
        record = await engine.install(engine.next_weights(columns=10_000))
        assert record.columns_checked == 2 * 7 + 1
        assert record.packing_seconds == 0, "this model is not on the list of those that are placed"
        engine.assert_says_what_models_say((await engine.generate())[1])

        weights = engine.next_weights(bucket_bytes=5_000)
        spoilt = next(t.bucket for t in weights.manifest.tensors if t.name == "model.layers.0.self_attn.v_proj.weight")
        with pytest.raises(WeightSyncError, match=f"bucket {spoilt}: worker 0 sees bytes"):
            await engine.install(with_a_flipped_bit(weights, spoilt))
        await engine.install(weights)
        engine.assert_says_what_models_say((await engine.generate())[1])
    finally:
        await engine.generator.stop()


async def test_two_workers_of_an_untied_model_with_biases_and_a_dead_engine_worker(tmp_path: Path) -> None:
    engine = await start(tmp_path, "qwen2", tied=False, workers=2)
    try:
        record = await engine.install(engine.next_weights(columns=10_000))
        assert record.columns_checked == 2 * 7 + 1
        engine.assert_says_what_models_say((await engine.generate())[1])
        engine.assert_says_what_models_say((await engine.generate(temperature=0.0))[1], 1.0)

        weights = engine.next_weights()
        bias = "model.layers.1.self_attn.k_proj.bias"
        tensors = [replace(t, fingerprint=1) if t.name == bias else t for t in weights.manifest.tensors]
        with pytest.raises(WeightSyncError, match=r"layers\.1\.self_attn\.k_proj\.bias"):
            await engine.install(replace(weights, manifest=replace(weights.manifest, tensors=tuple(tensors))))
        await engine.install(weights)
        engine.assert_says_what_models_say((await engine.generate())[1])

        group = await run_until_it_has_tokens(engine)
        weights = engine.next_weights()
        held_up = replace(weights, buckets=(*weights.buckets[:-1], FakeNeverRef()))
        installing = asyncio.create_task(engine.install(held_up))
        await asyncio.sleep(1.0)
        core = engine.generator._engine.engine_core.resources.engine_manager.processes[0]
        workers = [child for child in psutil.Process(core.pid).children() if "Worker" in " ".join(child.cmdline())]
        workers[1].kill()
        with pytest.raises(GroupFailed) as failed:
            await group
        installing.cancel()
        assert failed.value.reason == "engine_died"
        with pytest.raises(GroupFailed):
            await engine.generator.health()
    finally:
        await engine.generator.stop()
