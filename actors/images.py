"""Images of a prompt, on the generator's side: what the vision tower reads, and where in the prompt it stands.

A chat template writes one placeholder token for an image; the model reads as many as the vision tower makes of it.
The engine gets the short prompt and the pictures, and makes the same of them by itself; `engine_input` compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from funicular.actors.types import ImageFeatures
from funicular.rewards.types import Task, TaskImage

VISION_MODELS = ("qwen2_5_vl",)
"""`model_type` of the models whose prompts may have images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered prompt, as learner and engine take it."""

    token_ids: list[int]
    """With as many placeholders for each image as the model reads."""
    images: ImageFeatures | None = None
    """None: it has none."""
    short_ids: list[int] | None = None
    """With one placeholder for each image, as the chat template wrote it; None: it has none."""
    pictures: tuple[Any, ...] = ()
    """Pillow's, in RGB."""


class PromptMismatch(ValueError):
    """Engine and image processor make different tokens of a prompt's images."""


class ImageReader:
    """Reads the images of tasks for one model.

    Args:
        model_folder: with the image processor's configuration.

    Raises:
        ValueError: it has none that can be used here.
    """

    def __init__(self, model_folder: str) -> None:
        from transformers import AutoImageProcessor

        try:
            self._processor = AutoImageProcessor.from_pretrained(model_folder, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"model.path: {model_folder} has no image processor that loads here: {error}") from error
        self._placeholder: int = _config(model_folder)["image_token_id"]

    def read(self, task: Task, short_ids: list[int]) -> Prompt:
        """The prompt of a task with images. Decodes and resizes them: tens of milliseconds for each.

        Args:
            short_ids: the rendered prompt, with one placeholder for each image.

        Raises:
            ValueError: an image cannot be decoded, or the chat template has no place for it.
        """
        if short_ids.count(self._placeholder) != len(task.images):
            raise ValueError(
                f"task {task.task_id}: {len(task.images)} images, and the rendered prompt has "
                f"{short_ids.count(self._placeholder)} placeholders (token {self._placeholder}); a text must not spell "
                "the placeholder, and the chat template must write one for each part of type image"
            )
        pictures = tuple(_opened(image) for image in task.images)
        made = self._processor(images=list(pictures), return_tensors="np")
        grid_thw = np.asarray(made["image_grid_thw"], dtype=np.int64)
        counts = grid_thw.prod(1) // self._processor.merge_size**2
        token_ids = expanded(short_ids, self._placeholder, counts.tolist())
        features = ImageFeatures(
            pixel_values=np.asarray(made["pixel_values"], dtype=np.float32),
            grid_thw=grid_thw,
            places=np.flatnonzero(np.array(token_ids) == self._placeholder),
        )
        return Prompt(token_ids=token_ids, images=features, short_ids=short_ids, pictures=pictures)


def image_reader(model_folder: str) -> ImageReader | None:
    """The reader of a vision-language model; None for a model of text."""
    return ImageReader(model_folder) if is_vision_model(model_folder) else None


def read_prompt(reader: ImageReader | None, task: Task, rendered: list[int]) -> Prompt:
    """A task's prompt as learner and engine take it.

    Args:
        rendered: the prompt's tokens, with one placeholder for each image.

    Raises:
        ValueError: an image cannot be read, or the model reads none.
    """
    if not task.images:
        return Prompt(token_ids=rendered)
    if reader is None:
        raise ValueError(f"task {task.task_id}: it has images, and the model reads none")
    return reader.read(task, rendered)


def is_vision_model(model_folder: str | Path) -> bool:
    """Whether prompts of this model may have images."""
    return _config(model_folder).get("model_type") in VISION_MODELS


def expanded(short_ids: Sequence[int], placeholder: int, counts: Sequence[int]) -> list[int]:
    """The tokens with the n-th placeholder repeated `counts[n]` times."""
    left = iter(counts)
    return [token for one in short_ids for token in [one] * (next(left) if one == placeholder else 1)]


async def engine_input(engine: Any, prompt: Prompt) -> Any:
    """What vLLM's `generate` takes.

    Raises:
        PromptMismatch: the engine makes other tokens of the images than the learner will train on (law 5).
    """
    from vllm.inputs import TokensPrompt, tokens_input

    if prompt.short_ids is None:
        return tokens_input(prompt.token_ids)
    raw = TokensPrompt(prompt_token_ids=prompt.short_ids, multi_modal_data={"image": list(prompt.pictures)})
    (made,) = await engine.renderer.render_cmpl_async([raw])
    if list(made["prompt_token_ids"]) != prompt.token_ids:
        raise PromptMismatch(
            f"the engine makes {len(made['prompt_token_ids'])} tokens of a prompt with {len(prompt.pictures)} images, "
            f"the image processor {len(prompt.token_ids)}"
        )
    return made


def _opened(image: TaskImage) -> Any:
    from PIL import Image

    source = BytesIO(image.source) if isinstance(image.source, bytes) else image.source
    try:
        with Image.open(source) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image.name}: cannot be read as an image: {error}") from error


def _config(model_folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(model_folder) / "config.json").read_text())
