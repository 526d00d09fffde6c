"""From a planned micro-batch and its payloads to tensors: rows one after the other, or padded on the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from funicular.actors.attention import packed_positions
from funicular.actors.losses.segments import Segments
from funicular.actors.packing import MicroBatch
from funicular.actors.types import GroupPayload, TeacherPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One pass: its rows' tokens, and the N completion tokens in them that are trained."""

    input_ids: torch.Tensor
    """(1, T), rows one after the other; or (B, L), padded."""
    attention_mask: torch.Tensor | None
    """(B, L), 0 on padding; None for packed rows."""
    position_ids: torch.Tensor
    """As input_ids; from 0 in each row."""
    row_lengths: tuple[int, ...] | None
    """Tokens of each packed row; None for padded rows."""
    selection: torch.Tensor
    """(N,) positions of the trained tokens in the flattened input_ids."""
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
    if not micro.rows:
        return token_batch([0, 0], device, packed=packed)
    ids, generator_logprobs, teacher_logprobs = [], [], []
    for row in micro.rows:
        payload = payloads[row.group_id]
        part = payload.completion(row.completion)
        ids.append(np.concatenate([payload.prompt_ids, payload.token_ids[part]]).astype(np.int64))
        if payload.generator_logprobs is not None:
            generator_logprobs.append(payload.generator_logprobs[part])
        if teacher_payloads is not None:
            teacher_logprobs.append(teacher_payloads[row.group_id].logprobs[part])
    lengths = [row.length for row in micro.rows]
    tokens = np.array([row.completion_tokens for row in micro.rows])
    width = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else width * np.arange(len(lengths))
    selection = [
        np.arange(start + row.prompt_tokens, start + row.length) for start, row in zip(starts, micro.rows, strict=True)
    ]

    def floats(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    return Batch(
        **_layout(ids, device, packed=packed),
        selection=torch.from_numpy(np.concatenate(selection)).to(device),
        advantages=floats(np.repeat([row.advantage for row in micro.rows], tokens)),
        token_weights=floats(np.repeat([row.token_weight for row in micro.rows], tokens)),
        generator_logprobs=floats(np.concatenate(generator_logprobs)) if generator_logprobs else None,
        teacher_logprobs=floats(np.concatenate(teacher_logprobs)) if teacher_logprobs else None,
        segments=Segments.of_lengths(torch.from_numpy(tokens).to(device)),
        kl_weight=micro.rows[0].kl_weight,
        rows=tuple((row.group_id, row.completion) for row in micro.rows),
        is_empty=False,
    )


def token_batch(token_ids: list[int], device: torch.device, *, packed: bool = False) -> Batch:
    """One row, all of whose tokens but the first are scored; for the canary."""
    zeros = torch.zeros(len(token_ids) - 1, device=device)
    return Batch(
        **_layout([np.array(token_ids, dtype=np.int64)], device, packed=packed),
        selection=torch.arange(1, len(token_ids), device=device),
        advantages=zeros,
        token_weights=zeros,
        generator_logprobs=zeros,
        teacher_logprobs=None,
        segments=Segments.of_lengths(torch.tensor([len(token_ids) - 1], device=device)),
        kl_weight=0.0,
        rows=(),
        is_empty=True,
    )


def _layout(ids: list[np.ndarray], device: torch.device, *, packed: bool) -> dict[str, Any]:
    lengths = [len(row) for row in ids]
    if packed:
        return {
            "input_ids": torch.from_numpy(np.concatenate(ids))[None].to(device),
            "attention_mask": None,
            "position_ids": packed_positions(lengths, device),
            "row_lengths": tuple(lengths),
        }
    width = max(lengths)
    input_ids = np.zeros((len(ids), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(attention_mask).to(device),
        "position_ids": torch.arange(width, device=device).expand(len(ids), width),
        "row_lengths": None,
    }
