"""A training batch whose prompts have no image, one, or two of different sizes; and a plain model that reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from funicular.actors.images import image_reader, read_prompt
from funicular.actors.types import GroupPayload, ScoredGroup
from funicular.rewards.types import ImagePart, Message, Task, TaskImage
from tests.builders import make_group, make_payload
from tests.tiny_vision import picture_bytes

SIZES: tuple[tuple[tuple[int, int], ...], ...] = (((56, 28),), (), ((90, 61), (28, 28)), ((28, 112),))
"""(width, height) of the images of each group's prompt."""
SHAPES: list[tuple[list[float | None], list[int]]] = [
    ([0.0, 1.0, 0.0, 1.0], [3, 9, 16, 7]),
    ([1.0, None, 0.0, 0.5], [12, 2, 4, 4]),
    ([2.0, 0.0, 0.0, 0.0], [1, 16, 5, 2]),
    ([0.0, 0.0, 1.0, 3.0], [10, 3, 3, 8]),
]
"""Rewards and lengths of each group's completions."""


def vision_task(*sizes: tuple[int, int], text: str = "Count.") -> Task:
    """A task with a picture of each size (width, height)."""
    images = tuple(
        TaskImage(name=f"{i}.png", source=picture_bytes(*size, seed=10 * size[0] + i)) for i, size in enumerate(sizes)
    )
    parts = [ImagePart(type="image", name=image.name) for image in images]
    prompt = (Message(role="user", content=[*parts, {"type": "text", "text": text}]),)
    return Task(task_id=f"{len(sizes)} images", prompt=prompt, images=images, answer=None, verifier="none")


def vision_batch(folder: str, vocabulary: int = 300) -> tuple[list[ScoredGroup], dict[str, GroupPayload]]:
    """Groups as a generator makes them, with random tokens. One completion holds the placeholder token, as text."""
    from funicular.actors.prompts import Prompts, load_tokenizer

    tokenizer = load_tokenizer(folder)
    prompts, reader = Prompts(tokenizer, "auto"), image_reader(folder)
    groups, payloads = [], {}
    for index, (sizes, (rewards, lengths)) in enumerate(zip(SIZES, SHAPES, strict=True)):
        task = vision_task(*sizes)
        prompt = read_prompt(reader, task, prompts.render(task))
        group_id = f"g{index}"
        payload = make_payload(group_id, lengths_G=lengths, vocabulary=vocabulary)
        payload = replace(payload, prompt_ids=np.array(prompt.token_ids, dtype=np.int32), images=prompt.images)
        payload.token_ids[1] = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        payloads[group_id] = payload
        groups.append(make_group(group_id, rewards_G=rewards, lengths_G=lengths, prompt_tokens=len(payload.prompt_ids)))
    return groups, payloads


class PlainVision:
    """A transformers model that is asked row by row, as tests of text models ask theirs: by the tokens alone.

    It finds the images by the prompt that the tokens begin with, and calls the model as transformers' users do, but for
    placeholders in completions, which it hides from the model: there they are text.
    """

    def __init__(self, model: Any, payloads: dict[str, GroupPayload]) -> None:
        self._model = model
        self._payloads = [payload for payload in payloads.values() if payload.images is not None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, input_ids: torch.Tensor) -> Any:
        ids = input_ids[0].tolist()
        for payload in self._payloads:
            prompt = payload.prompt_ids.tolist()
            if ids[: len(prompt)] == prompt:
                return self._with_images(input_ids, payload)
        return self._model(input_ids=input_ids)

    def _with_images(self, input_ids: torch.Tensor, payload: GroupPayload) -> Any:
        images = payload.images
        assert images is not None
        placeholder = self._model.config.image_token_id
        kinds = torch.zeros_like(input_ids, dtype=torch.int32)
        kinds[0, torch.from_numpy(images.places)] = 1
        embeddings = self._model.get_input_embeddings()(input_ids)
        grid = torch.from_numpy(images.grid_thw.copy())
        features = self._model.get_image_features(torch.from_numpy(images.pixel_values.copy()), grid, return_dict=True)
        assert int((input_ids[0, : len(payload.prompt_ids)] == placeholder).sum()) == len(images.places)
        mask = (kinds == 1)[..., None].expand_as(embeddings)
        embeddings = embeddings.masked_scatter(mask, torch.cat(features.pooler_output))
        positions, _ = self._model.model.get_rope_index(input_ids, kinds, image_grid_thw=grid)
        return self._model(inputs_embeds=embeddings, position_ids=positions)
