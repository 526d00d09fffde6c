"""A real engine reads images: what it says of them is what the learner's model says, with every set of weights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.types import GenerationRecord, GenerationRequest, GroupPayload
from funicular.rewards.types import Task
from tests.publish_helpers import publish
from tests.tiny_vision import IMAGE_PROCESSOR, make_tiny_vision_model
from tests.vision_batches import PlainVision, vision_task

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOLERANCE = 1e-4
TASKS = {
    "none": vision_task(),
    "one": vision_task((56, 28)),
    "two": vision_task((90, 61), (28, 28)),
    "wide": vision_task((150, 20)),
}


class Engine:
    """A generator with the transformers model whose weights it was sent last."""

    def __init__(self, generator: Any, folder: Path) -> None:
        self.generator = generator
        self.folder = folder
        self.version = 0
        self.model: Any = None

    async def install(self) -> Any:
        """New weights everywhere, the vision tower included."""
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.version += 1
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32)
        torch.manual_seed(self.version)
        for parameter in self.model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        return await self.generator.install(publish(self.model, self.version, columns=10_000), self.version)

    async def generate(self, task: Task, temperature: float = 1.0) -> tuple[GenerationRecord, GroupPayload]:
        return await self.generator.generate(
            GenerationRequest(group_id=task.task_id, task=task, count=3, temperature=temperature)
        )

    def largest_difference(self, payload: GroupPayload) -> float:
        """Of a completion token's log-probability: the engine's and the model's."""
        plain = PlainVision(self.model, {payload.group_id: payload})
        worst = 0.0
        for i in range(len(payload.texts)):
            part = payload.completion(i)
            ids = torch.tensor([[*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]])
            with torch.no_grad():
                logprobs = plain(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            mine = logprobs[len(payload.prompt_ids) - 1 :].numpy()
            worst = max(worst, float(np.abs(mine - payload.generator_logprobs[part]).max()))
        return worst


async def start(folder: Path, workers: int, **options: Any) -> Engine:
    from funicular.actors.generator import Generator

    make_tiny_vision_model(folder, **options)
    config = GeneratorConfig(
        tensor_parallel_size=workers,
        max_prompt_tokens=96,
        max_completion_tokens=24,
        max_sequences=8,
        kv_cache_gib=0.25,
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
    )
    await generator.start()
    return Engine(generator, folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """Tied head, one worker."""
    running = await start(tmp_path_factory.mktemp("vision"), 1)
    yield running
    await running.generator.stop()


async def test_every_parameter_is_verified_the_towers_included(engine: Engine) -> None:
    record = await engine.install()
    matrices = 2 * 7 + 1 + 2 * 5 + 2
    assert record.columns_checked == matrices, "decoder layers, head; vision blocks, merger; all by their packed copies"
    assert record.fingerprints_checked > 2 * 5 + 1
    assert record.canary_error < TOLERANCE


@pytest.mark.parametrize("name", TASKS)
async def test_logprobs_are_those_of_the_learners_model(engine: Engine, name: str) -> None:
    """The second install changes the tower: an image that the engine has seen must be looked at again."""
    found = []
    for _ in range(2):
        await engine.install()
        record, payload = await engine.generate(TASKS[name])
        assert engine.largest_difference(payload) < TOLERANCE
        assert (payload.images is None) == (name == "none")
        assert record.prompt_tokens == len(payload.prompt_ids)
        found.append(payload)
    assert found[0].prompt_ids.tolist() == found[1].prompt_ids.tolist()


async def test_images_matter_to_the_engine(engine: Engine) -> None:
    """Else the agreement above would say nothing of them."""
    await engine.install()
    greedy = [(await engine.generate(vision_task(size), temperature=0.0))[1] for size in [(56, 28), (28, 56)]]
    assert not np.array_equal(greedy[0].token_ids[:24], greedy[1].token_ids[:24])
    black = {"g": greedy[0]}
    images = black["g"].images
    assert images is not None
    images.pixel_values[:] = 0
    assert engine.largest_difference(greedy[0]) > 1e-2


async def test_the_engine_reads_the_very_pixels_that_the_learner_gets(engine: Engine) -> None:
    from vllm.inputs import TokensPrompt

    await engine.install()
    task = TASKS["two"]
    _, payload = await engine.generate(task)
    prompt = engine.generator._images.read(task, engine.generator._prompts.render(task))
    raw = TokensPrompt(prompt_token_ids=prompt.short_ids, multi_modal_data={"image": list(prompt.pictures)})
    (made,) = await engine.generator._engine.renderer.render_cmpl_async([raw], skip_mm_cache=True)
    seen = np.concatenate([item["pixel_values"].data for item in made["mm_kwargs"]["image"]])
    mean, std = (np.array(IMAGE_PROCESSOR[name])[:, None] for name in ("image_mean", "image_std"))
    assert payload.images is not None
    # vLLM normalises in the model: what it is given are colours from 0 to 255.
    colours = (payload.images.pixel_values.reshape(len(seen), 3, -1) * std + mean) * 255
    np.testing.assert_allclose(seen, colours.reshape(seen.shape), atol=1e-3)


async def test_a_prompt_that_images_make_too_long_is_not_tried_again(engine: Engine) -> None:
    await engine.install()
    with pytest.raises(GroupFailed, match="prompt_too_long") as caught:
        await engine.generate(vision_task(*[(112, 112)] * 6))
    assert not caught.value.retry_task


async def test_two_workers_of_an_untied_model(tmp_path: Path) -> None:
    engine = await start(tmp_path, 2, tied=False)
    try:
        record = await engine.install()
        assert record.columns_checked == 2 * 7 + 1 + 2 * 5 + 2
        for task in TASKS.values():
            _, payload = await engine.generate(task)
            assert engine.largest_difference(payload) < TOLERANCE
    finally:
        await engine.generator.stop()
