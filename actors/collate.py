"""From a planned micro-batch and its payloads to tensors: rows one after the other, or padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from funicular.actors.layout import Layout
from funicular.actors.losses.segments import Segments
from funicular.actors.packing import MicroBatch
from funicular.actors.types import GroupPayload, TeacherPayload
from funicular.actors.vision import PassImages, pass_images

Tree = tuple[np.ndarray, list[np.ndarray]]
"""Ids of a prompt, and of the completions that share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One pass: its rows' tokens, and the N completion tokens in them that are trained."""

    input_ids: torch.Tensor
    """(1, T), rows one after the other; or (B, L), padded."""
    attention_mask: torch.Tensor | None
    """(B, L), 0 on padding; None for packed rows."""
    position_ids: torch.Tensor
    """As input_ids; from 0 in each row."""
    layout: Layout | None
    """Of packed rows; None for padded rows."""
    predictors: torch.Tensor
    """(N,) position in the flattened input_ids of the token before each trained one."""
    labels: torch.Tensor
    """(N,) ids of the trained tokens."""
    advantages: torch.Tensor
    """(N,) float32."""
    token_weights: torch.Tensor
    """(N,) float32: coefficients in the optimizer batch's sum."""
    generator_logprobs: torch.Tensor | None
    """(N,) float32; None: no generator sampled them."""
    teacher_logprobs: torch.Tensor | None
    """(N,) float32; None: no teacher scored them."""
    segments: Segments
    """Which of the R completions each token belongs to."""
    kl_weight: float
    """A token's advantage is `advantages` plus this times the KL from it to the end of its completion."""
    rows: tuple[tuple[str, int], ...]
    """(R) group_id and index of each completion."""
    is_empty: bool
    """A pass that only keeps the ranks in step: one token of weight 0."""
    images: PassImages | None = None
    """Of padded rows; None: there are none."""


def collate(
    micro: MicroBatch,
    payloads: Mapping[str, GroupPayload],
    device: torch.device,
    *,
    packed: bool = False,
    teacher_payloads: Mapping[str, TeacherPayload] | None = None,
) -> Batch:
    """Gather the rows of a micro-batch from the payloads that this rank fetched.

    Args:
        teacher_payloads: by group id; None: no teacher scored the groups.
    """
    if not micro.trees:
        return token_batch([0, 0], device, packed=packed)
    rows = micro.rows
    labels, generator_logprobs, teacher_logprobs = [], [], []
    for row in rows:
        payload = payloads[row.group_id]
        part = payload.completion(row.completion)
        labels.append(payload.token_ids[part].astype(np.int64))
        if payload.generator_logprobs is not None:
            generator_logprobs.append(payload.generator_logprobs[part])
        if teacher_payloads is not None:
            teacher_logprobs.append(teacher_payloads[row.group_id].logprobs[part])
    tokens = np.array([row.completion_tokens for row in rows])
    prompts = [payloads[tree[0].group_id].prompt_ids.astype(np.int64) for tree in micro.trees]
    completions = iter(labels)
    trees = [(prompt, [next(completions) for _ in tree]) for prompt, tree in zip(prompts, micro.trees, strict=True)]

    def floats(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    placed = _packed(trees, device) if packed else _padded(trees, device)
    width = placed["input_ids"].shape[1]
    return Batch(
        **placed,
        labels=torch.from_numpy(np.concatenate(labels)).to(device),
        advantages=floats(np.repeat([row.advantage for row in rows], tokens)),
        token_weights=floats(np.repeat([row.token_weight for row in rows], tokens)),
        generator_logprobs=floats(np.concatenate(generator_logprobs)) if generator_logprobs else None,
        teacher_logprobs=floats(np.concatenate(teacher_logprobs)) if teacher_logprobs else None,
        segments=Segments.of_lengths(torch.from_numpy(tokens).to(device)),
        kl_weight=rows[0].kl_weight,
        rows=tuple((row.group_id, row.completion) for row in rows),
        is_empty=False,
        images=None if packed else pass_images(rows, payloads, width, device),
    )


def token_batch(token_ids: list[int], device: torch.device, *, packed: bool = False) -> Batch:
    """One row, all of whose tokens but the first are scored; for the canary."""
    zeros = torch.zeros(len(token_ids) - 1, device=device)
    ids = np.array(token_ids, dtype=np.int64)
    trees = [(ids[:1], [ids[1:]])]
    return Batch(
        **(_packed(trees, device) if packed else _padded(trees, device)),
        labels=torch.from_numpy(ids[1:]).to(device),
        advantages=zeros,
        token_weights=zeros,
        generator_logprobs=zeros,
        teacher_logprobs=None,
        segments=Segments.of_lengths(torch.tensor([len(token_ids) - 1], device=device)),
        kl_weight=0.0,
        rows=(),
        is_empty=True,
    )


def _packed(trees: Sequence[Tree], device: torch.device) -> dict[str, Any]:
    """Each prompt, then its completions. A completion alone with its prompt goes on from it in the same span."""
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    parents: list[int | None] = []
    predictors: list[np.ndarray] = []
    end = 0
    for prompt, completions in trees:
        ids += [prompt, *completions]
        root = len(lengths)
        alone = len(completions) == 1
        lengths += [len(prompt) + len(completions[0])] if alone else [len(prompt), *map(len, completions)]
        parents += [None] if alone else [None, *(root for _ in completions)]
        end += len(prompt)
        last_of_prompt = end - 1
        for completion in completions:
            predictors += [np.array([last_of_prompt]), np.arange(end, end + len(completion) - 1)]
            end += len(completion)
    layout = Layout(lengths=tuple(lengths), parents=tuple(parents))
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None].to(device),
        "attention_mask": None,
        "position_ids": layout.positions(device),
        "layout": layout,
        "predictors": torch.from_numpy(np.concatenate(predictors)).to(device),
    }


def _padded(trees: Sequence[Tree], device: torch.device) -> dict[str, Any]:
    rows = [(len(prompt), np.concatenate([prompt, completion])) for prompt, (completion,) in trees]
    width = max(len(row) for _, row in rows)
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    predictors = []
    for index, (prompt_tokens, row) in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
        predictors.append(index * width + np.arange(prompt_tokens - 1, len(row) - 1))
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(attention_mask).to(device),
        "position_ids": torch.arange(width, device=device).expand(len(rows), width),
        "layout": None,
        "predictors": torch.from_numpy(np.concatenate(predictors)).to(device),
    }
