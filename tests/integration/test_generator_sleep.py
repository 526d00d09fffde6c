"""A real engine sleeps and wakes: what it generates, and what it does not. On a CPU vLLM frees nothing; one minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from funicular.actors.errors import GroupFailed
from funicular.actors.install_states import WeightState
from funicular.actors.weights import WeightSyncError
from tests.engines import Engine, run_until_it_has_tokens, start, with_a_flipped_bit

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2])
async def engine(tmp_path_factory: pytest.TempPathFactory, request: Any) -> AsyncIterator[Engine]:
    running = await start(tmp_path_factory.mktemp("llama"), "llama", tied=True, workers=request.param)
    yield running
    await running.generator.stop()


async def turn(engine: Engine) -> None:
    """Twice each: who is asked again has nothing to do."""
    for _ in range(2):
        await engine.generator.sleep()
    assert engine.generator._installer.asleep
    assert engine.generator._installer.state is WeightState.INITIAL
    for _ in range(2):
        await engine.generator.wake()
    assert not engine.generator._installer.asleep


async def test_it_may_sleep_before_it_ever_had_weights(engine: Engine) -> None:
    await turn(engine)
    await engine.install(engine.next_weights())
    engine.assert_says_what_models_say((await engine.generate())[1])


async def test_it_takes_the_same_version_again_and_forgets_the_prefixes_of_before(engine: Engine) -> None:
    weights = engine.next_weights()
    await engine.install(weights)
    text = "one two three four five six seven eight nine ten " * 4  # whole blocks of the KV cache
    generator, before = engine.generator, engine.generator._config
    generator._installer._config = replace(before, cache_in_flight="keep")  # the sleep itself must have forgotten them
    try:
        await engine.generate(text=text, count=1)
        await turn(engine)
        generator._serving.report()
        await engine.install(weights)
        _, payload = await engine.generate(text=text, count=1)
    finally:
        generator._installer._config = before
    assert generator._serving.report().prompt_tokens_cached == 0
    engine.assert_says_what_models_say(payload)
    assert engine.generator.committed_version == engine.version


async def test_groups_under_way_fail_and_those_that_come_wait_for_an_install(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    group = await run_until_it_has_tokens(engine, count=4)
    await engine.generator.sleep()
    with pytest.raises(GroupFailed, match="gpus_handed_over"):
        await group
    waiting = asyncio.create_task(engine.generate())
    await asyncio.sleep(0.5)
    await engine.generator.wake()
    await asyncio.sleep(0.5)
    assert not waiting.done()
    old, weights = engine.version, engine.next_weights()
    with pytest.raises(WeightSyncError):
        await engine.install(with_a_flipped_bit(weights, 0))
    await turn(engine)  # as when the version is packed anew
    await engine.install(weights)
    with pytest.raises(GroupFailed, match="gpus_handed_over"):
        await waiting
    _, payload = await engine.generate()
    assert set(payload.token_versions.tolist()) == {engine.version} != {old}
    engine.assert_says_what_models_say(payload)


async def test_sleep_is_no_lack_of_progress(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    now = [0.0]
    engine.generator._clock, before = lambda: now[0], engine.generator._clock
    try:
        await engine.generator.sleep()
        waiting = asyncio.create_task(engine.generate())
        await asyncio.sleep(0.2)
        now[0] += 10_000.0
        await asyncio.sleep(2.5)  # the watch looks each second
        assert not waiting.done()
        await engine.generator.wake()
        await engine.install(engine.next_weights())
        engine.assert_says_what_models_say((await waiting)[1])
    finally:
        engine.generator._clock = before


async def test_an_engine_that_died_in_its_sleep_says_so(engine: Engine) -> None:
    await engine.install(engine.next_weights())
    await engine.generator.sleep()
    engine.generator._engine.shutdown()
    with pytest.raises(GroupFailed, match="engine_died"):
        await engine.generator.wake()
