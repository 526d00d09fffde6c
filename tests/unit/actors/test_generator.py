"""A generator without an engine: which prompts it refuses, and when it takes its engine for hung."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from funicular.actors import generator as module
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.generator import Generator
from funicular.actors.types import GenerationRequest
from funicular.rewards.types import Task

DEADLINE_S = 100.0


class FakePrompts:
    """One token per word; refuses an empty text as a chat template refuses roles."""

    def render(self, task: Task) -> list[int]:
        assert isinstance(task.prompt, str)
        if not task.prompt:
            raise ValueError("the chat template refuses messages with roles system")
        return [len(word) for word in task.prompt.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))


class FakeGate:
    """Everything is committed as version 3."""

    committed = 3

    async def versions(self, labels: set[str], deadline_s: float) -> dict[str, int]:
        return dict.fromkeys(labels, 3)


class FakeClock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def output(finish_reason: str | None, length: int = 1) -> Any:
    """One token, the last of `length`."""
    span = SimpleNamespace(version="3.1", end=length)
    news = SimpleNamespace(
        token_ids=[7],
        logprobs=[{7: SimpleNamespace(logprob=-1.0)}],
        finish_reason=finish_reason,
        weight_versions=[span] if finish_reason else None,
    )
    return SimpleNamespace(outputs=[news])


class FakeEngine:
    """Prompts of one token are served at once, `slow` tokens with half a deadline each; others wait for `free`."""

    def __init__(self, clock: FakeClock, slow: int = 0) -> None:
        self.clock = clock
        self.slow = slow
        self.free = asyncio.Event()
        self.asked = asyncio.Event()

    async def generate(self, prompt: Any, parameters: Any, *, request_id: str, lora_request: Any) -> AsyncIterator[Any]:
        from vllm.exceptions import VLLMValidationError

        self.asked.set()
        tokens = prompt["prompt_token_ids"]
        if tokens[0] > 9:
            raise VLLMValidationError("token id out of vocabulary", parameter="prompt")
        if len(tokens) > 1:
            await self.free.wait()
        else:
            for _ in range(self.slow):
                self.clock.now += DEADLINE_S / 2
                yield output(None)
                await asyncio.sleep(0.02)  # the watch looks in between
            self.free.set()
        yield output("stop", self.slow + 1 if len(tokens) == 1 else 1)


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_PERIOD_S", 0.001)


def make(clock: FakeClock, engine: Any) -> Generator:
    generator = Generator(
        "generator-0",
        GeneratorConfig(max_sequences=4, progress_deadline_s=DEADLINE_S),
        WeightSyncConfig(),
        model_folder="none",
        chat_template="auto",
        seed=0,
        use_gpu=False,
        clock=clock,
    )
    parts = {
        "_prompts": FakePrompts(),
        "_gate": FakeGate(),
        "_installer": SimpleNamespace(running=False, asleep=False, seconds={}),
    }
    for name, part in {**parts, "_engine": engine}.items():
        setattr(generator, name, part)
    return generator


_numbers = itertools.count()


def request(text: str) -> GenerationRequest:
    task = Task(task_id="t", prompt=text, answer=None, verifier="none")
    return GenerationRequest(group_id=f"g{next(_numbers)}", task=task, count=2, temperature=1.0)


async def test_a_prompt_that_the_template_refuses_is_not_tried_again() -> None:
    generator = make(FakeClock(), None)
    with pytest.raises(GroupFailed, match="prompt_refused: the chat template refuses") as caught:
        await generator.generate(request(""))
    assert (caught.value.reason, caught.value.retry_task) == ("prompt_refused", False)


async def test_a_prompt_that_the_engine_refuses_is_not_tried_again() -> None:
    clock = FakeClock()
    generator = make(clock, FakeEngine(clock))
    with pytest.raises(GroupFailed, match="prompt_refused: token id out of vocabulary") as caught:
        await generator.generate(request("unpronounceable"))
    assert (caught.value.reason, caught.value.retry_task) == ("prompt_refused", False)
    assert (await generator.metrics())["generator/running"] == 0


async def test_a_group_that_queues_in_the_engine_while_another_gets_tokens_is_not_hung() -> None:
    clock = FakeClock()
    generator = make(clock, FakeEngine(clock, slow=10))
    queued = asyncio.create_task(generator.generate(request("two words")))
    await generator.generate(request("one"))
    record, payload = await queued
    assert clock.now >= 5 * DEADLINE_S
    assert record.oldest_version == 3
    assert payload.token_ids.tolist() == [7, 7]


async def test_an_engine_that_gives_no_token_at_all_fails_its_groups() -> None:
    clock = FakeClock()
    engine = FakeEngine(clock)
    generator = make(clock, engine)
    groups = [asyncio.create_task(generator.generate(request("two words"))) for _ in range(2)]
    while (await generator.metrics())["generator/running"] < 4:  # a group that came later would have its own deadline
        await asyncio.sleep(0.001)
    clock.now += DEADLINE_S + 1
    for group in groups:
        with pytest.raises(GroupFailed, match="no_progress: generator-0: the engine gave no token in 100 s"):
            await group
    assert (await generator.metrics())["generator/groups_failed"] == 2


async def test_an_engine_that_was_idle_has_its_whole_deadline_again() -> None:
    clock = FakeClock()
    engine = FakeEngine(clock)
    generator = make(clock, engine)
    await generator.generate(request("one"))
    clock.now += 10 * DEADLINE_S
    engine.free.clear()
    group = asyncio.create_task(generator.generate(request("two words")))
    await asyncio.sleep(0.05)
    assert not group.done()
    engine.free.set()
    await group


async def test_an_install_is_no_lack_of_progress() -> None:
    clock = FakeClock()
    engine = FakeEngine(clock)
    generator = make(clock, engine)
    generator._installer.running = True
    group = asyncio.create_task(generator.generate(request("two words")))
    await engine.asked.wait()
    clock.now += 10 * DEADLINE_S
    await asyncio.sleep(0.05)
    generator._installer.running = False
    await asyncio.sleep(0.05)
    assert not group.done()
    engine.free.set()
    await group
