"""The update in plain PyTorch: one process, one row at a time, no packing. What the learner must agree with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from funicular.actors.advantage import group_advantages
from funicular.actors.config import AlgorithmConfig
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.presets import preset_of
from funicular.actors.types import GroupPayload, ScoredGroup

Row = dict[str, Any]


def token_logprobs(model: Any, row: Row, temperature: float) -> torch.Tensor:
    """(completion tokens,) of one row, by a forward pass of that row alone."""
    ids = torch.cat([row["prompt"], row["completion"]])
    logits = model(input_ids=ids[None]).logits[0, len(row["prompt"]) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1).gather(-1, row["completion"][:, None])[:, 0]


def valid_rows(
    groups: Sequence[ScoredGroup], payloads: Mapping[str, GroupPayload], algorithm: AlgorithmConfig
) -> list[list[Row]]:
    """Rows of each group that are not void, with their advantages over the whole training batch."""
    advantages = group_advantages([group.rewards_G for group in groups], preset_of(algorithm).scale_rewards)
    out = []
    for group, advantages_G in zip(groups, advantages, strict=True):
        payload = payloads[group.group_id]
        rows = []
        for index, advantage in enumerate(advantages_G):
            if advantage is None:
                continue
            part = payload.completion(index)
            masked = algorithm.mask_truncated_completions and group.generation.truncated_G[index]
            rows.append(
                {
                    "prompt": torch.from_numpy(payload.prompt_ids.astype(np.int64)),
                    "completion": torch.from_numpy(payload.token_ids[part].astype(np.int64)),
                    "generator": torch.from_numpy(_of(payload.generator_logprobs, part)),
                    "advantage": advantage,
                    "trained": not masked,
                }
            )
        out.append(rows)
    return out


def _of(logprobs: np.ndarray | None, part: slice) -> np.ndarray:
    """Of one completion; nothing at all where nothing sampled it."""
    return np.empty(0, dtype=np.float32) if logprobs is None else logprobs[part].copy()


def update(
    model: Any,
    groups: Sequence[ScoredGroup],
    payloads: Mapping[str, GroupPayload],
    algorithm: AlgorithmConfig,
    *,
    max_completion_tokens: int,
    temperature: float,
) -> None:
    """One training step in place: gradient descent with learning rate 1, one update per optimizer batch."""
    rows_PG = valid_rows(groups, payloads, algorithm)
    with torch.no_grad():
        for row in (row for rows in rows_PG for row in rows):
            row["old"] = token_logprobs(model, row, temperature)
    count = algorithm.optimizer_batches
    for index in range(count):
        chosen = rows_PG[len(rows_PG) * index // count : len(rows_PG) * (index + 1) // count]
        rows = [row for group in chosen for row in group]
        mask = [torch.full_like(row["completion"], row["trained"]) for row in rows]
        loss = loss_from_tensors(
            _padded([token_logprobs(model, row, temperature) for row in rows]),
            _padded([row["old"] for row in rows]),
            torch.tensor([row["advantage"] for row in rows]),
            _padded(mask),
            objective=preset_of(algorithm).objective,
            ratio_level=preset_of(algorithm).ratio_level,
            aggregation=preset_of(algorithm).aggregation,
            max_completion_tokens=max_completion_tokens,
            epsilon_low=preset_of(algorithm).epsilon_low,
            epsilon_high=preset_of(algorithm).epsilon_high,
            generator_logprobs=_padded([row["generator"] for row in rows]),
            importance_cap=algorithm.importance_cap,
        )
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad


def _padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
