"""Training steps in plain PyTorch with any optimizer, one row at a time: what DeepSpeed must agree with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from funicular.actors.config import AlgorithmConfig
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.presets import preset_of
from funicular.actors.types import GroupPayload, ScoredGroup
from tests.plain_policy import token_logprobs, valid_rows


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ScoredGroup],
    payloads: Mapping[str, GroupPayload],
    algorithm: AlgorithmConfig,
    *,
    temperature: float,
    max_completion_tokens: int,
    max_grad_norm: float = 0.0,
    schedule: Any = None,
) -> list[float]:
    """One training batch: num_iterations passes over its optimizer batches. Returns the norms of their gradients."""
    rows_PG = valid_rows(groups, payloads, algorithm)
    with torch.no_grad():
        for row in (row for rows in rows_PG for row in rows):
            row["old"] = token_logprobs(model, row, temperature)
    count = min(algorithm.optimizer_batches, len(rows_PG))
    norms = []
    for index in list(range(count)) * algorithm.num_iterations:
        chosen = rows_PG[len(rows_PG) * index // count : len(rows_PG) * (index + 1) // count]
        rows = [row for group in chosen for row in group]
        loss = loss_from_tensors(
            _padded([token_logprobs(model, row, temperature) for row in rows]),
            _padded([row["old"] for row in rows]),
            torch.tensor([row["advantage"] for row in rows]),
            _padded([torch.full_like(row["completion"], row["trained"]) for row in rows]),
            aggregation=preset_of(algorithm).aggregation,
            max_completion_tokens=max_completion_tokens,
            epsilon_low=preset_of(algorithm).epsilon_low,
            epsilon_high=preset_of(algorithm).epsilon_high,
            generator_logprobs=_padded([row["generator"] for row in rows]),
            importance_cap=algorithm.importance_cap,
        )
        optimizer.zero_grad()
        loss.backward()
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))))
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return norms


def _padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
