"""From a planned micro-batch and its payloads to tensors. Rows are padded on the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from funicular.actors.losses.segments import Segments
from funicular.actors.packing import MicroBatch
from funicular.actors.types import GroupPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One pass: B rows of L padded tokens, and the N completion tokens in them that are trained."""

    input_ids: torch.Tensor
    """(B, L)"""
    attention_mask: torch.Tensor
    """(B, L); 0 on padding."""
    position_ids: torch.Tensor
    """(B, L)"""
    selection: torch.Tensor
    """(N,) positions of the trained tokens in the flattened input_ids."""
    advantages: torch.Tensor
    """(N,) float32."""
    token_weights: torch.Tensor
    """(N,) float32: coefficients in the optimizer batch's sum."""
    generator_logprobs: torch.Tensor
    """(N,) float32."""
    segments: Segments
    """Which of the R completions each token belongs to."""
    kl_weight: float
    """A token's advantage is `advantages` plus this times the KL from it to the end of its completion."""
    rows: tuple[tuple[str, int], ...]
    """(R) group_id and index of each completion."""
    is_empty: bool
    """A pass that only keeps the ranks in step: one token of weight 0."""


def collate(micro: MicroBatch, payloads: Mapping[str, GroupPayload], device: torch.device) -> Batch:
    """Gather the rows of a micro-batch from the payloads that this rank fetched."""
    if not micro.rows:
        return token_batch([0, 0], device)
    width = max(row.length for row in micro.rows)
    input_ids = np.zeros((len(micro.rows), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    selection, advantages, weights, generator_logprobs = [], [], [], []
    for index, row in enumerate(micro.rows):
        payload = payloads[row.group_id]
        part = payload.completion(row.completion)
        input_ids[index, : row.prompt_tokens] = payload.prompt_ids
        input_ids[index, row.prompt_tokens : row.length] = payload.token_ids[part]
        attention_mask[index, : row.length] = 1
        selection.append(index * width + np.arange(row.prompt_tokens, row.length))
        advantages.append(np.full(row.completion_tokens, row.advantage))
        weights.append(np.full(row.completion_tokens, row.token_weight))
        generator_logprobs.append(payload.generator_logprobs[part])

    def floats(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(device)

    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        attention_mask=torch.from_numpy(attention_mask).to(device),
        position_ids=_positions(*input_ids.shape, device),
        selection=torch.from_numpy(np.concatenate(selection)).to(device),
        advantages=floats(advantages),
        token_weights=floats(weights),
        generator_logprobs=floats(generator_logprobs),
        segments=Segments.of_lengths(torch.tensor([row.completion_tokens for row in micro.rows], device=device)),
        kl_weight=micro.rows[0].kl_weight,
        rows=tuple((row.group_id, row.completion) for row in micro.rows),
        is_empty=False,
    )


def token_batch(token_ids: list[int], device: torch.device) -> Batch:
    """One row, all of whose tokens but the first are scored; for the canary."""
    ids = torch.tensor([token_ids], device=device)
    zeros = torch.zeros(len(token_ids) - 1, device=device)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=_positions(1, len(token_ids), device),
        selection=torch.arange(1, len(token_ids), device=device),
        advantages=zeros,
        token_weights=zeros,
        generator_logprobs=zeros,
        segments=Segments.of_lengths(torch.tensor([len(token_ids) - 1], device=device)),
        kl_weight=0.0,
        rows=(),
        is_empty=True,
    )


def _positions(rows: int, width: int, device: torch.device) -> torch.Tensor:
    return torch.arange(width, device=device).expand(rows, width)
