"""The gradient of one optimizer batch, plainly: one row at a time, all logits at once, no DeepSpeed.

What the learner's gradient is compared with. Of the learner's code it uses the functions of docs/algorithms.md:
advantages and `loss_from_tensors`. Forward passes, counts and everything that has to do with cutting are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from funicular.actors.advantages.batch import BatchAdvantages, batch_advantages
from funicular.actors.config import AlgorithmConfig
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.entropy import entropy_threshold_of
from funicular.actors.losses.presets import kl_in_reward, loss_settings, preset_of
from funicular.actors.types import GroupPayload, KlScore, ScoredGroup
from funicular.rewards.config import RewardConfig

Logprobs = Mapping[tuple[str, int], torch.Tensor]
"""By group_id and index of the completion: (tokens,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerBatch:
    """A training batch that makes one optimizer step."""

    groups: tuple[ScoredGroup, ...]
    payloads: Mapping[str, GroupPayload]
    rewards: RewardConfig
    algorithm: AlgorithmConfig
    temperature: float
    max_completion_tokens: int
    """The configured limit, for `constant`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One valid completion."""

    group: int
    completion: int
    key: tuple[str, int]
    token_ids: torch.Tensor
    """Prompt and completion, (L,)."""
    prompt_tokens: int
    generator_logprobs: torch.Tensor
    is_trained: bool
    """False: truncated, and masked for it."""

    @property
    def trained_tokens(self) -> int:
        return len(self.generator_logprobs) if self.is_trained else 0


def row_logprobs(model: Any, batch: OptimizerBatch) -> dict[tuple[str, int], torch.Tensor]:
    """Log-probabilities of all valid completions under a model, without gradient."""
    with torch.no_grad():
        return {row.key: _scores(model, row, batch.temperature)[0] for row in _rows(batch)}


def add_gradient(model: Any, batch: OptimizerBatch, reference: Logprobs | None) -> float:
    """Add the gradient of the batch's loss to the parameters' `grad`. Returns the loss.

    Args:
        model: a causal language model of transformers. Its type decides in which the gradient is computed.
        reference: the reference policy's log-probabilities; needed where beta > 0.
    """
    algorithm, preset = batch.algorithm, preset_of(batch.algorithm)
    valid = _rows(batch)
    rows = [row for row in valid if row.trained_tokens]
    before = _before(model, batch, rows)
    advantages = _advantages(batch, valid, before, reference)
    cut = _entropy_cut(algorithm, before, rows)
    total = 0.0
    for row in rows:
        logprobs, entropies = _scores(model, row, batch.temperature)
        old = before[row.key][0] if row.key in before else logprobs.detach()
        row_reference = None if reference is None else reference[row.key].to(logprobs)
        loss = loss_from_tensors(
            logprobs[None],
            None if preset.old_logprobs == "generator" else old[None],
            _token_advantages(advantages, row, old, row_reference)[None],
            torch.ones(1, row.trained_tokens),
            **_divisors(batch, valid, row),
            **asdict(loss_settings(algorithm)),
            reference_logprobs=None if row_reference is None else row_reference[None],
            generator_logprobs=row.generator_logprobs.to(logprobs)[None],
            entropies=entropies[None],
            entropy_coef=algorithm.entropy_coef,
            top_entropy_quantile=algorithm.top_entropy_quantile,
            **cut,
        )
        loss.backward()
        total += float(loss.detach())
    return total


def _counted_groups(batch: OptimizerBatch) -> list[tuple[int, ScoredGroup]]:
    """Without the groups that `zero_variance_groups: drop` takes out."""
    drops = preset_of(batch.algorithm).zero_variance_groups == "drop"
    return [
        (index, group)
        for index, group in enumerate(batch.groups)
        if not drops or len({reward for reward in group.rewards_G if reward is not None}) > 1
    ]


def _rows(batch: OptimizerBatch) -> list[_Row]:
    rows = []
    for index, group in _counted_groups(batch):
        payload = batch.payloads[group.group_id]
        for completion, valid in enumerate(group.valid_G):
            if not valid:
                continue
            part = payload.completion(completion)
            masked = batch.algorithm.mask_truncated_completions and group.generation.truncated_G[completion]
            if payload.generator_logprobs is None:
                raise ValueError(f"{group.group_id}: given completions, which nothing sampled")
            ids = np.concatenate([payload.prompt_ids, payload.token_ids[part]]).astype(np.int64)
            rows.append(
                _Row(
                    group=index,
                    completion=completion,
                    key=(group.group_id, completion),
                    token_ids=torch.from_numpy(ids),
                    prompt_tokens=len(payload.prompt_ids),
                    generator_logprobs=torch.from_numpy(payload.generator_logprobs[part].copy()),
                    is_trained=not masked,
                )
            )
    return rows


def _scores(model: Any, row: _Row, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completion's tokens, and entropies of what they were drawn from, (tokens,) each."""
    logits = model(input_ids=row.token_ids[None], use_cache=False).logits[0, row.prompt_tokens - 1 : -1]
    everything = torch.log_softmax(logits / temperature, -1)
    labels = row.token_ids[row.prompt_tokens :, None]
    return everything.gather(1, labels)[:, 0], -(everything.exp() * everything).sum(1)


def _before(model: Any, batch: OptimizerBatch, rows: Sequence[_Row]) -> dict[tuple[str, int], Any]:
    """Log-probabilities and entropies of a pass before the update, where the loss needs those of all rows at once."""
    if not kl_in_reward(batch.algorithm) and batch.algorithm.top_entropy_quantile == 1:
        return {}
    with torch.no_grad():
        return {row.key: _scores(model, row, batch.temperature) for row in rows}


def _advantages(
    batch: OptimizerBatch,
    valid: Sequence[_Row],
    before: Mapping[tuple[str, int], Any],
    reference: Logprobs | None,
) -> BatchAdvantages:
    """Of `batch.groups` in order; None for completions of groups that are dropped."""
    counted = _counted_groups(batch)
    trained = {row.key: row.trained_tokens for row in valid}
    tokens_PG = [
        [trained.get((group.group_id, index), 0) for index in range(len(group.verdicts_G))] for _, group in counted
    ]
    kl = None
    if kl_in_reward(batch.algorithm) and reference is not None:
        kl = {key: _kl_score(old - reference[key].to(old)) for key, (old, _) in before.items()}
    found = batch_advantages([group for _, group in counted], batch.algorithm, batch.rewards, tokens_PG, kl)
    advantages_PG: list[list[float | None]] = [[None] * len(group.verdicts_G) for group in batch.groups]
    for (index, _), advantages_G in zip(counted, found.advantages_PG, strict=True):
        advantages_PG[index] = advantages_G
    return BatchAdvantages(advantages_PG=advantages_PG, kl_weight=found.kl_weight, metrics=found.metrics)


def _kl_score(k1: torch.Tensor) -> KlScore:
    to_go = _to_go(k1.double())
    return KlScore(
        tokens=len(k1),
        total=float(k1.double().sum()),
        to_go_sum=float(to_go.sum()),
        to_go_squares=float(to_go.square().sum()),
    )


def _to_go(k1: torch.Tensor) -> torch.Tensor:
    """Sum from each token to the end of the completion."""
    return k1.flip(0).cumsum(0).flip(0)


def _token_advantages(
    advantages: BatchAdvantages, row: _Row, old: torch.Tensor, reference: torch.Tensor | None
) -> torch.Tensor:
    advantage = advantages.advantages_PG[row.group][row.completion]
    if advantage is None:
        raise RuntimeError(f"{row.key}: a valid completion without an advantage")
    spread = torch.full_like(old, advantage)
    if advantages.kl_weight and reference is not None:
        spread = spread + advantages.kl_weight * _to_go(old - reference)
    return spread


def _entropy_cut(
    algorithm: AlgorithmConfig, before: Mapping[tuple[str, int], Any], rows: Sequence[_Row]
) -> dict[str, Any]:
    """From which entropy a token is trained, and over how many tokens the entropy bonus is a mean."""
    if algorithm.top_entropy_quantile == 1:
        return {"entropy_threshold": None, "entropy_tokens": sum(row.trained_tokens for row in rows)}
    entropies = torch.cat([before[row.key][1] for row in rows])
    threshold = entropy_threshold_of(entropies, algorithm.top_entropy_quantile)
    return {"entropy_threshold": threshold, "entropy_tokens": int((entropies >= threshold).sum())}


def _divisors(batch: OptimizerBatch, valid: Sequence[_Row], row: _Row) -> dict[str, Any]:
    """What a row's loss is divided by, counted over the whole batch."""
    return {
        "aggregation": preset_of(batch.algorithm).aggregation,
        "rows": len(valid),
        "tokens": sum(one.trained_tokens for one in valid),
        "max_completion_tokens": batch.max_completion_tokens,
        "groups": torch.tensor([row.group]),
        "group_count": len(_counted_groups(batch)),
        "group_tokens": torch.tensor([sum(one.trained_tokens for one in valid if one.group == row.group)]),
    }
