"""A real engine for tests, and what it must say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.served_adapter import ServedAdapter
from funicular.actors.types import GenerationRequest, GroupPayload
from funicular.actors.weights import PublishedWeights
from funicular.rewards.types import Task
from tests.publish_helpers import FakeRef, publish, token_logprobs
from tests.tiny import Architecture, make_tiny_model

TOLERANCE = 1e-4
LONG = 400


class Engine:
    """A generator with the transformers models whose weights it is sent."""

    def __init__(self, generator: Any, folder: Path) -> None:
        self.generator = generator
        self.folder = folder
        self.version = 0
        self.attempt = 0
        self.models: dict[int, Any] = {}

    def next_weights(self, **options: Any) -> PublishedWeights:
        """A new version: the initial model with other random weights."""
        import torch
        from transformers import AutoModelForCausalLM

        self.version += 1
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        torch.manual_seed(self.version)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        self.models[self.version] = model
        return publish(model, self.version, **options)

    async def install(self, weights: PublishedWeights) -> Any:
        self.attempt += 1
        return await self.generator.install(weights, self.attempt)

    async def generate(self, *, count: int = 2, temperature: float = 0.7, text: str = "one two three") -> Any:
        task = Task(task_id="t", prompt=text, answer=None, verifier="none")
        return await self.generator.generate(
            GenerationRequest(group_id="g", task=task, count=count, temperature=temperature)
        )

    def assert_says_what_models_say(self, payload: GroupPayload, temperature: float = 0.7) -> None:
        """Every token's log-probability is that of the version that is named for it."""
        for i in range(len(payload.offsets) - 1):
            part = payload.completion(i)
            tokens = [*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]
            for version in set(payload.token_versions[part].tolist()):
                theirs = token_logprobs(self.models[version], tokens, temperature)[len(payload.prompt_ids) - 1 :]
                mine = payload.token_versions[part] == version
                np.testing.assert_allclose(payload.generator_logprobs[part][mine], theirs[mine], atol=TOLERANCE, rtol=0)


async def start(
    folder: Path, architecture: Architecture, *, tied: bool, workers: int = 1, adapter: ServedAdapter | None = None
) -> Engine:
    from funicular.actors.generator import Generator

    make_tiny_model(folder, architecture=architecture, tied=tied)
    config = GeneratorConfig(
        tensor_parallel_size=workers,
        max_prompt_tokens=64,
        max_completion_tokens=LONG,
        max_sequences=8,
        kv_cache_gib=0.25,
        cpu_threads=1,  # two that wait for each other take thrice as long on a busy machine
        progress_deadline_s=120.0,
    )
    generator = Generator(
        "generator-0",
        config,
        WeightSyncConfig(deadline_s=120.0),
        model_folder=str(folder),
        chat_template="auto",
        seed=0,
        use_gpu=False,
        adapter=adapter,
    )
    await generator.start()
    return Engine(generator, folder)


async def run_until_it_has_tokens(engine: Engine, **options: Any) -> asyncio.Task[Any]:
    """A group that is being generated."""
    for _ in range(5):
        group = asyncio.create_task(engine.generate(**options))
        while not group.done() and not (await engine.generator.metrics())["generator/running"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        if not group.done():
            return group
        await group  # this process was held up, and the engine was not
    raise AssertionError("five groups ended too early for this test")


def with_a_flipped_bit(weights: PublishedWeights, bucket: int) -> PublishedWeights:
    buckets = list(weights.buckets)
    data = buckets[bucket].value.copy()
    data[0] ^= 1
    buckets[bucket] = FakeRef(data)
    return replace(weights, buckets=tuple(buckets))
