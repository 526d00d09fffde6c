"""What each learner rank does in a step. Pure: numbers in, a plan out.

The cut must not change the gradient (law 1). Hence every token's weight is fixed here, from counts over the whole
optimizer batch, before anything is placed.

    training batch --whole groups, in order--> optimizer batches --packing.py--> ranks, micro-batches
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from funicular.actors.advantage import rewards_are_equal
from funicular.actors.advantages.batch import BatchAdvantages, KlScores, batch_advantages
from funicular.actors.aggregation import Normaliser
from funicular.actors.config import AlgorithmConfig
from funicular.actors.distillation_config import DistillationConfig, distils, reward_factor
from funicular.actors.losses.presets import preset_of, uses_entropy
from funicular.actors.packing import (
    MicroBatch,
    PlannedRow,
    SharePrompts,
    Tree,
    aligned,
    balance,
    cut_micro_batches,
    grow_trees,
    tokens_of,
)
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
    """Of the advantages, and of the tokens that the passes have."""

    def shared(self, size: int) -> StepPlan:
        """The same for groups of `size` neighbouring ranks: all of a group get the same rows and share each pass."""
        return replace(self, ranks=tuple(rank for rank in self.ranks for _ in range(size)))


def plan_step(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
    *,
    packed: bool = False,
    share_prompts: SharePrompts = "off",
    rewards: RewardConfig | None = None,
    distillation: DistillationConfig | None = None,
    kl: KlScores | None = None,
) -> StepPlan:
    """Cut a training batch.

    Advantages are taken once, over the whole training batch. Void completions are in nothing. Truncated
    completions lose their tokens when `mask_truncated_completions` is set, and stay rows. Rows whose gradient
    is 0 by construction (advantage 0, and neither KL, entropy nor distillation terms) count in the normaliser and are
    not planned.

    Args:
        groups: in slot order, each with at least two valid completions.
        micro_batch_tokens: tokens of one pass; a single longer row gets a pass of its own.
        max_completion_tokens: the configured limit, for `constant`.
        packed: rows lie one after the other in a pass, so that its tokens are theirs; else they are padded, and its
            tokens are rows x longest row.
        share_prompts: completions of a group that are in one pass have one prompt there (`grow_trees`); packed only.
        rewards: names and weights of the reward functions, for `several_rewards`; None: the default's.
        distillation: None: there is no teacher.
        kl: from the pass that `plan_scoring` plans; needed where the KL term is in the reward.

    Raises:
        ValueError: no groups, or a group with fewer than two valid completions.
    """
    counted = _counted(groups, algorithm)
    tokens_PG = [[n or 0 for n in trained_lengths(group, algorithm)] for group in counted]
    distillation = distillation or DistillationConfig()
    factor = reward_factor(distillation)
    advantages = _no_advantages(counted)
    if counted and factor != 0:
        advantages = batch_advantages(counted, algorithm, rewards or RewardConfig(), tokens_PG, kl)
        advantages = _multiplied(advantages, factor)
    cut = (counted, algorithm, ranks, micro_batch_tokens, max_completion_tokens)
    return _cut(*cut, advantages, packed=packed, share_prompts=share_prompts, every_row=distils(distillation))


def plan_scoring(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
    *,
    packed: bool = False,
    share_prompts: SharePrompts = "off",
    distillation: DistillationConfig | None = None,
) -> StepPlan:
    """The cut that `plan_step` makes of the same groups, before their advantages are known (they are 0 in it).

    Only for a KL term in the reward: then no row is left out for its advantage, so that both cuts are the same.
    """
    counted = _counted(groups, algorithm)
    cut = (counted, algorithm, ranks, micro_batch_tokens, max_completion_tokens)
    every_row = distils(distillation or DistillationConfig())
    return _cut(*cut, _no_advantages(counted), packed=packed, share_prompts=share_prompts, every_row=every_row)


def trained_lengths(group: ScoredGroup, algorithm: AlgorithmConfig) -> tuple[int | None, ...]:
    """Trained tokens of each completion: None for void ones, 0 for masked truncated ones."""
    masked = algorithm.mask_truncated_completions
    return tuple(
        (0 if masked and truncated else length) if valid else None
        for length, truncated, valid in zip(
            group.generation.lengths_G, group.generation.truncated_G, group.valid_G, strict=True
        )
    )


def _no_advantages(groups: Sequence[ScoredGroup]) -> BatchAdvantages:
    """0 for every valid completion."""
    zeros: list[list[float | None]] = [[0.0 if valid else None for valid in group.valid_G] for group in groups]
    return BatchAdvantages(advantages_PG=zeros, metrics={})


def _multiplied(advantages: BatchAdvantages, factor: float) -> BatchAdvantages:
    """By `distillation.reward_coef`; the metrics stay those of the rewards."""
    if factor == 1:
        return advantages
    multiplied = [[None if a is None else factor * a for a in of_group] for of_group in advantages.advantages_PG]
    return replace(advantages, advantages_PG=multiplied, kl_weight=factor * advantages.kl_weight)


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
    share_prompts: SharePrompts,
    every_row: bool,
) -> StepPlan:
    count = max(1, min(algorithm.optimizer_batches, len(groups)))
    bounds = [len(groups) * i // count for i in range(count + 1)]
    per_rank: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(ranks)]
    normalisers = []
    planned: list[Tree] = []
    for start, end in itertools.pairwise(bounds):
        normaliser = _normaliser(groups[start:end], algorithm, max_completion_tokens)
        rows_PG = [
            _planned_rows(group, advantages_G, algorithm, normaliser, advantages.kl_weight, every_row=every_row)
            for group, advantages_G in zip(groups[start:end], advantages.advantages_PG[start:end], strict=True)
        ]
        trees_PG = [grow_trees(rows, micro_batch_tokens, share_prompts if packed else "off") for rows in rows_PG]
        planned += itertools.chain.from_iterable(trees_PG)
        per_rank_trees = balance(trees_PG, ranks, micro_batch_tokens, packed=packed)
        cut = [cut_micro_batches(trees, micro_batch_tokens, packed=packed) for trees in per_rank_trees]
        for rank, micro_batches in enumerate(aligned(cut)):
            per_rank[rank].append(micro_batches)
        normalisers.append(normaliser)
    return StepPlan(
        ranks=tuple(RankPlan(optimizer_batches=tuple(batches), normalisers=tuple(normalisers)) for batches in per_rank),
        normalisers=tuple(normalisers),
        metrics={**advantages.metrics, **_pass_tokens(planned)},
    )


def _pass_tokens(trees: Sequence[Tree]) -> dict[str, float]:
    """Tokens of all passes over the batch once, and what they would be if no prompt were shared."""
    return {
        "perf/pass_tokens": float(sum(tokens_of(tree) for tree in trees)),
        "perf/pass_tokens_unshared": float(sum(row.length for tree in trees for row in tree)),
    }


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
    *,
    every_row: bool,
) -> list[PlannedRow]:
    tokens_G = trained_lengths(group, algorithm)
    group_tokens = sum(n or 0 for n in tokens_G)
    all_rows = every_row or algorithm.beta > 0 or uses_entropy(algorithm) or algorithm.top_entropy_quantile < 1
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
