"""Images on the learner's side: a pass's images through the vision tower, and into the decoder's input.

Each image goes through the vision tower once per pass, however many rows have it. A pass without images takes the same
way with a small black one that adds 0 to its input: under ZeRO-3 the tower's forward pass is a collective, and where it
is trained its gradients are, so that every rank makes the same ones whatever rows it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from funicular.actors.images import VISION_MODELS
from funicular.actors.packing import PlannedRow
from funicular.actors.types import GroupPayload, ImageFeatures

ADAPTER_FREE = r"(.*\.)?visual\..*"
"""peft's pattern of modules that get no adapters while the vision tower is frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassImages:
    """The images of one pass over padded rows; those of a group once, however many of its completions are rows."""

    pixel_values: torch.Tensor
    """(patches, values of a patch) float32."""
    grid_thw: torch.Tensor
    """(images, 3) int64: patches of each image in time, height and width."""
    of_rows: tuple[int, ...]
    """The images of the first row, then those of the second, and so on, by their place in grid_thw."""
    places: torch.Tensor
    """(placeholders,) positions in the flattened input_ids, in the order of `of_rows`."""


def pass_images(
    rows: Sequence[PlannedRow], payloads: Mapping[str, GroupPayload], width: int, device: torch.device
) -> PassImages | None:
    """The images of the rows of a micro-batch; None: there are none.

    Args:
        width: tokens of a padded row.
    """
    found: dict[str, tuple[ImageFeatures, range]] = {}
    of_rows: list[int] = []
    places = []
    count = 0
    for index, row in enumerate(rows):
        features = payloads[row.group_id].images
        if features is None:
            continue
        if row.group_id not in found:
            found[row.group_id] = features, range(count, count + len(features.grid_thw))
            count += len(features.grid_thw)
        of_rows += found[row.group_id][1]
        places.append(index * width + features.places)
    if not found:
        return None
    kept = [features for features, _ in found.values()]
    return PassImages(
        pixel_values=torch.from_numpy(np.concatenate([features.pixel_values for features in kept])).to(device),
        grid_thw=torch.from_numpy(np.concatenate([features.grid_thw for features in kept])).to(device),
        of_rows=tuple(of_rows),
        places=torch.from_numpy(np.concatenate(places)).to(device),
    )


class Vision:
    """The way from tokens and images to the decoder's input, for one vision-language model.

    Args:
        causal_lm: one of `VISION_MODELS`.
    """

    def __init__(self, causal_lm: Any) -> None:
        self._model = causal_lm.model
        config = causal_lm.config.vision_config
        self._merge: int = config.spatial_merge_size
        self._values = config.in_channels * config.temporal_patch_size * config.patch_size**2

    def decoder_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        images: PassImages | None,
    ) -> dict[str, torch.Tensor]:
        """Keyword arguments for the decoder in the place of input_ids and position_ids.

        Args:
            input_ids, attention_mask, position_ids: (B, L).

        Raises:
            ValueError: the vision tower makes another number of features than the prompts have placeholders.
        """
        embeddings = self._model.get_input_embeddings()(input_ids)
        if images is None:
            nothing = self._features(*self._black_image(input_ids.device)).sum() * 0.0
            return {"inputs_embeds": embeddings + nothing.to(embeddings.dtype), "position_ids": position_ids}
        features = self._features(images.pixel_values, images.grid_thw)
        parts = features.split((images.grid_thw.prod(1) // self._merge**2).tolist())
        placed = torch.cat([parts[image] for image in images.of_rows]).to(embeddings.dtype)
        if len(placed) != len(images.places):
            raise ValueError(f"{len(images.places)} placeholders in a pass, {len(placed)} image features")
        flat = embeddings.flatten(0, 1).index_put((images.places,), placed)
        return {
            "inputs_embeds": flat.view_as(embeddings),
            "position_ids": self._positions(input_ids, attention_mask, images),
        }

    def _features(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        tower = self._model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grid_thw, return_dict=True).pooler_output

    def _positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, images: PassImages
    ) -> torch.Tensor:
        """(3, B, L) in time, height and width. What is an image is said by place: a policy may sample a placeholder
        token too, which is text then, for the engine as well."""
        kinds = torch.zeros_like(input_ids, dtype=torch.int32)
        kinds.view(-1)[images.places] = 1
        positions, _ = self._model.get_rope_index(
            input_ids,
            mm_token_type_ids=kinds,
            image_grid_thw=images.grid_thw[list(images.of_rows)],
            attention_mask=attention_mask,
        )
        return positions

    def _black_image(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest image: one feature."""
        side = self._merge
        return torch.zeros(side * side, self._values, device=device), torch.tensor([[1, side, side]], device=device)


def vision_of(causal_lm: Any) -> Vision | None:
    """None for a model of text."""
    return Vision(causal_lm) if reads_images(causal_lm) else None


def reads_images(causal_lm: Any) -> bool:
    """Whether it is a vision-language model."""
    return causal_lm.config.model_type in VISION_MODELS


def freeze(causal_lm: Any) -> None:
    """Train the decoder only: vision tower and projector, one module here, stay as they are."""
    causal_lm.model.visual.requires_grad_(False)
