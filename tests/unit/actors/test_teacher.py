"""A teacher without an engine: what it reads from one, and when it takes it for hung."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from funicular.actors import teacher as module
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.teacher import Teacher, engine_config
from tests.builders import make_payload

DEADLINE_S = 100.0


class FakeClock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Gives each token minus its id; waits for `free` first, and may leave tokens out."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.forgets = 0
        self.nan_for: int | None = None

    async def generate(self, prompt: Any, parameters: Any, *, request_id: str) -> AsyncIterator[Any]:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        await self.free.wait()
        self.at_once -= 1
        tokens = prompt["prompt_token_ids"][1 + self.forgets :]
        logprobs = [float("nan") if token == self.nan_for else -float(token) for token in tokens]
        yield SimpleNamespace(prompt_logprobs=SimpleNamespace(token_ids=tokens, logprobs=logprobs))


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_PERIOD_S", 0.001)


def make(engine: FakeEngine, clock: FakeClock | None = None) -> Teacher:
    teacher = Teacher(
        "teacher-0",
        DistillationConfig(teacher="none", max_sequences=2, progress_deadline_s=DEADLINE_S),
        GeneratorConfig(),
        WeightSyncConfig(),
        model_folder="none",
        use_gpu=False,
        clock=clock or FakeClock(),
    )
    teacher._engine = engine
    return teacher


async def test_scores_stand_where_the_groups_tokens_stand() -> None:
    engine = FakeEngine()
    payload = make_payload("g", lengths_G=[3, 1, 4])
    record, said = await make(engine).score(payload)
    np.testing.assert_array_equal(said.logprobs, -payload.token_ids.astype(np.float32))
    assert said.logprobs.dtype == np.float32
    assert (record.group_id, record.teacher, record.finite_G) == ("g", "teacher-0", (True, True, True))
    assert engine.most_at_once == 2


async def test_a_completion_with_a_missing_number_is_named() -> None:
    engine = FakeEngine()
    payload = make_payload("g", lengths_G=[3, 4])
    engine.nan_for = int(payload.token_ids[4])
    record, _ = await make(engine).score(payload)
    assert record.finite_G == (True, False)


async def test_an_engine_that_leaves_tokens_out_is_no_source_of_numbers() -> None:
    engine = FakeEngine()
    engine.forgets = 2
    with pytest.raises(GroupFailed, match="engine_error: teacher-0: scored 5 tokens of 7"):
        await make(engine).score(make_payload("g", lengths_G=[3]))


async def test_an_engine_that_scores_nothing_at_all_fails_its_groups_and_one_that_was_idle_does_not() -> None:
    engine, clock = FakeEngine(), FakeClock()
    teacher = make(engine, clock)
    clock.now += 10 * DEADLINE_S
    await teacher.score(make_payload("g", lengths_G=[3]))
    engine.free.clear()
    hung = asyncio.create_task(teacher.score(make_payload("h", lengths_G=[3])))
    while engine.asked < 2:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert not hung.done()
    clock.now += DEADLINE_S + 1
    with pytest.raises(GroupFailed, match="no_progress: teacher-0: the engine scored nothing in 100 s"):
        await hung


def test_the_engine_takes_a_whole_completion_as_its_prompt() -> None:
    generator = GeneratorConfig(max_prompt_tokens=30, max_completion_tokens=20, dtype="bfloat16")
    config = engine_config(DistillationConfig(tensor_parallel_size=2), generator)
    assert config.max_prompt_tokens + config.max_completion_tokens == 51
    assert (config.dtype, config.tensor_parallel_size) == ("bfloat16", 2)
    assert engine_config(DistillationConfig(dtype="float32"), generator).dtype == "float32"
