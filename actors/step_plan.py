"""What each learner rank does in a step. Pure: numbers in, a plan out.

The cut must not change the gradient (law 1). Hence every token's weight is fixed here, from counts over the whole
optimizer batch, before anything is placed.

    training batch --whole groups, in order--> optimizer batches --packing.py--> ranks, micro-batches
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from funicular.actors.advantage import rewards_are_equal
from funicular.actors.advantages.batch import BatchAdvantages, KlScores, batch_advantages
from funicular.actors.aggregation import Normaliser
from funicular.actors.config import AlgorithmConfig
from funicular.actors.losses.presets import preset_of, uses_entropy
from funicular.actors.packing import MicroBatch, PlannedRow, aligned, balance, cut_micro_batches
from funicular.actors.types import ScoredGroup
from funicular.rewards.config import RewardConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank does in a step."""

    optimizer_batches: tuple[tuple[MicroBatch, ...], ...]
    """Micro-batches of each optimizer batch; an empty tuple, on all ranks, where no row gives a gradient."""
    normalisers: tuple[Normaliser, ...]
    """Of each optimizer batch; the same on every rank."""

    @property
    def group_ids(self) -> tuple[str, ...]:
        """The groups whose payloads this rank needs."""
        rows = (row for batch in self.optimizer_batches for micro in batch for row in micro.rows)
        return tuple(dict.fromkeys(row.group_id for row in rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The cut of one training batch."""

    ranks: tuple[RankPlan, ...]
    normalisers: tuple[Normaliser, ...]
    """Of each optimizer batch."""
    metrics: Mapping[str, float]
    """Of the advantages."""


def plan_step(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
    *,
    packed: bool = False,
    rewards: RewardConfig | None = None,
    kl: KlScores | None = None,
) -> StepPlan:
    """Cut a training batch.

    Advantages are taken once, over the whole training batch. Void completions are in nothing. Truncated
    completions lose their tokens when `mask_truncated_completions` is set, and stay rows. Rows whose gradient
    is 0 by construction (advantage 0, and neither KL nor entropy terms) count in the normaliser and are not planned.

    Args:
        groups: in slot order, each with at least two valid completions.
        micro_batch_tokens: tokens of one pass; a single longer row gets a pass of its own.
        max_completion_tokens: the configured limit, for `constant`.
        packed: rows lie one after the other in a pass, so that its tokens are theirs; else they are padded, and its
            tokens are rows x longest row.
        rewards: names and weights of the reward functions, for `several_rewards`; None: the default's.
        kl: from the pass that `plan_scoring` plans; needed where the KL term is in the reward.

    Raises:
        ValueError: no groups, or a group with fewer than two valid completions.
    """
    counted = _counted(groups, algorithm)
    tokens_PG = [[n or 0 for n in trained_lengths(group, algorithm)] for group in counted]
    advantages = BatchAdvantages(advantages_PG=[], metrics={})
    if counted:
        advantages = batch_advantages(counted, algorithm, rewards or RewardConfig(), tokens_PG, kl)
    return _cut(counted, algorithm, ranks, micro_batch_tokens, max_completion_tokens, advantages, packed=packed)


def plan_scoring(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
    *,
    packed: bool = False,
) -> StepPlan:
    """The cut that `plan_step` makes of the same groups, before their advantages are known (they are 0 in it).

    Only for a KL term in the reward: then no row is left out for its advantage, so that both cuts are the same.
    """
    counted = _counted(groups, algorithm)
    zeros: list[list[float | None]] = [[0.0 if valid else None for valid in group.valid_G] for group in counted]
    advantages = BatchAdvantages(advantages_PG=zeros, metrics={})
    return _cut(counted, algorithm, ranks, micro_batch_tokens, max_completion_tokens, advantages, packed=packed)


def trained_lengths(group: ScoredGroup, algorithm: AlgorithmConfig) -> tuple[int | None, ...]:
    """Trained tokens of each completion: None for void ones, 0 for masked truncated ones."""
    masked = algorithm.mask_truncated_completions
    return tuple(
        (0 if masked and truncated else length) if valid else None
        for length, truncated, valid in zip(
            group.generation.lengths_G, group.generation.truncated_G, group.valid_G, strict=True
        )
    )


def _counted(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig) -> list[ScoredGroup]:
    """Without the groups that `zero_variance_groups: drop` takes out of the batch."""
    if not groups:
        raise ValueError("a step needs at least one group; a batch without groups makes no version")
    if preset_of(algorithm).zero_variance_groups != "drop":
        return list(groups)
    return [group for group in groups if not _without_variance(group)]


def _without_variance(group: ScoredGroup) -> bool:
    rewards = np.array([reward for reward in group.rewards_G if reward is not None])
    return rewards.size > 1 and rewards_are_equal(rewards)


def _cut(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
    advantages: BatchAdvantages,
    *,
    packed: bool,
) -> StepPlan:
    count = max(1, min(algorithm.optimizer_batches, len(groups)))
    bounds = [len(groups) * i // count for i in range(count + 1)]
    per_rank: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(ranks)]
    normalisers = []
    for start, end in itertools.pairwise(bounds):
        normaliser = _normaliser(groups[start:end], algorithm, max_completion_tokens)
        rows_PG = [
            _planned_rows(group, advantages_G, algorithm, normaliser, advantages.kl_weight)
            for group, advantages_G in zip(groups[start:end], advantages.advantages_PG[start:end], strict=True)
        ]
        per_rank_rows = balance(rows_PG, ranks, micro_batch_tokens, packed=packed)
        cut = [cut_micro_batches(rows, micro_batch_tokens, packed=packed) for rows in per_rank_rows]
        for rank, micro_batches in enumerate(aligned(cut)):
            per_rank[rank].append(micro_batches)
        normalisers.append(normaliser)
    return StepPlan(
        ranks=tuple(RankPlan(optimizer_batches=tuple(batches), normalisers=tuple(normalisers)) for batches in per_rank),
        normalisers=tuple(normalisers),
        metrics=advantages.metrics,
    )


def _normaliser(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, max_completion_tokens: int) -> Normaliser:
    lengths = [n for group in groups for n in trained_lengths(group, algorithm) if n is not None]
    return Normaliser(
        aggregation=preset_of(algorithm).aggregation,
        rows=len(lengths),
        tokens=sum(lengths),
        groups=len(groups),
        max_completion_tokens=max_completion_tokens,
    )


def _planned_rows(
    group: ScoredGroup,
    advantages_G: Sequence[float | None],
    algorithm: AlgorithmConfig,
    normaliser: Normaliser,
    kl_weight: float,
) -> list[PlannedRow]:
    tokens_G = trained_lengths(group, algorithm)
    group_tokens = sum(n or 0 for n in tokens_G)
    all_rows = algorithm.beta > 0 or uses_entropy(algorithm) or algorithm.top_entropy_quantile < 1
    return [
        PlannedRow(
            group_id=group.group_id,
            completion=index,
            prompt_tokens=group.generation.prompt_tokens,
            completion_tokens=tokens,
            advantage=advantage,
            kl_weight=kl_weight,
            token_weight=normaliser.token_weight(tokens, group_tokens),
        )
        for index, (tokens, advantage) in enumerate(zip(tokens_G, advantages_G, strict=True))
        if tokens and advantage is not None and (advantage != 0 or all_rows)
    ]
