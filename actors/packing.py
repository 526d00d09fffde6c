"""How a training batch is cut: optimizer batches, ranks, micro-batches. Pure: numbers in, a plan out.

The cut must not change the gradient (law 1). Hence every token's weight is fixed here, from counts over the
whole optimizer batch, before anything is placed; and every rank gets the same number of micro-batches, because under
ZeRO each pass is a collective.

    training batch --whole groups, in order--> optimizer batches --whole groups, by tokens--> ranks
                   --rows, by length--> micro-batches
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from funicular.actors.advantage import group_advantages
from funicular.actors.aggregation import Normaliser, aggregation_of, reward_scale_of
from funicular.actors.config import AlgorithmConfig
from funicular.actors.types import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """One completion that gives a gradient."""

    group_id: str
    completion: int
    """Index in the group."""
    prompt_tokens: int
    completion_tokens: int
    """Trained tokens, the end-of-sequence token included."""
    advantage: float
    token_weight: float
    """Coefficient of each of its tokens in the optimizer batch's sum."""

    @property
    def length(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of one forward and backward pass. Without rows: a pass that only keeps the ranks in step."""

    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank does in a step."""

    optimizer_batches: tuple[tuple[MicroBatch, ...], ...]
    """Micro-batches of each optimizer batch; an empty tuple, on all ranks, where no row gives a gradient."""

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


def plan_step(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    ranks: int,
    micro_batch_tokens: int,
    max_completion_tokens: int,
) -> StepPlan:
    """Cut a training batch.

    Advantages are taken once, over the whole training batch. Void completions are in nothing. Truncated
    completions lose their tokens when `mask_truncated_completions` is set, and stay rows. Rows whose gradient
    is 0 by construction (advantage 0 and no KL term) count in the normaliser and are not planned.

    Args:
        groups: in slot order, each with at least two valid completions.
        micro_batch_tokens: padded tokens of one pass; a single longer row gets a pass of its own.
        max_completion_tokens: the configured limit, for `constant`.

    Raises:
        ValueError: no groups, or a group with fewer than two valid completions.
    """
    if not groups:
        raise ValueError("a step needs at least one group; a batch without groups makes no version")
    advantages_PG = group_advantages([group.rewards_G for group in groups], reward_scale_of(algorithm))
    count = min(algorithm.optimizer_batches, len(groups))
    bounds = [len(groups) * i // count for i in range(count + 1)]
    per_rank: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(ranks)]
    normalisers = []
    for start, end in itertools.pairwise(bounds):
        normaliser = _normaliser(groups[start:end], algorithm, max_completion_tokens)
        rows_PG = [
            _planned_rows(group, advantages_G, algorithm, normaliser)
            for group, advantages_G in zip(groups[start:end], advantages_PG[start:end], strict=True)
        ]
        cut = [cut_micro_batches(rows, micro_batch_tokens) for rows in balance(rows_PG, ranks, micro_batch_tokens)]
        for rank, micro_batches in enumerate(_aligned(cut)):
            per_rank[rank].append(micro_batches)
        normalisers.append(normaliser)
    return StepPlan(
        ranks=tuple(RankPlan(optimizer_batches=tuple(batches)) for batches in per_rank),
        normalisers=tuple(normalisers),
    )


def trained_lengths(group: ScoredGroup, algorithm: AlgorithmConfig) -> tuple[int | None, ...]:
    """Trained tokens of each completion: None for void ones, 0 for masked truncated ones."""
    masked = algorithm.mask_truncated_completions
    return tuple(
        (0 if masked and truncated else length) if valid else None
        for length, truncated, valid in zip(
            group.generation.lengths_G, group.generation.truncated_G, group.valid_G, strict=True
        )
    )


def _normaliser(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, max_completion_tokens: int) -> Normaliser:
    lengths = [n for group in groups for n in trained_lengths(group, algorithm) if n is not None]
    return Normaliser(
        aggregation=aggregation_of(algorithm),
        rows=len(lengths),
        tokens=sum(lengths),
        max_completion_tokens=max_completion_tokens,
    )


def _planned_rows(
    group: ScoredGroup,
    advantages_G: Sequence[float | None],
    algorithm: AlgorithmConfig,
    normaliser: Normaliser,
) -> list[PlannedRow]:
    tokens_G = trained_lengths(group, algorithm)
    return [
        PlannedRow(
            group_id=group.group_id,
            completion=index,
            prompt_tokens=group.generation.prompt_tokens,
            completion_tokens=tokens,
            advantage=advantage,
            token_weight=normaliser.token_weight(tokens),
        )
        for index, (tokens, advantage) in enumerate(zip(tokens_G, advantages_G, strict=True))
        if tokens and advantage is not None and (advantage != 0 or algorithm.beta > 0)
    ]


def balance(rows_PG: Sequence[Sequence[PlannedRow]], ranks: int, micro_batch_tokens: int) -> list[list[PlannedRow]]:
    """Give whole groups to ranks: the costliest first, each to the rank that has least.

    A group's cost is the padded tokens it would take alone, which is what its passes compute.
    """

    def cost(rows: Sequence[PlannedRow]) -> int:
        cut = cut_micro_batches(rows, micro_batch_tokens)
        return sum(len(micro) * max(row.length for row in micro) for micro in cut)

    costs = {index: cost(rows) for index, rows in enumerate(rows_PG) if rows}
    loads, assigned = [0] * ranks, [list[int]() for _ in range(ranks)]
    for index in sorted(costs, key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        assigned[rank].append(index)
    return [[row for index in sorted(indices) for row in rows_PG[index]] for indices in assigned]


def cut_micro_batches(rows: Sequence[PlannedRow], micro_batch_tokens: int) -> list[list[PlannedRow]]:
    """Longest rows first, as many to a pass as keep rows x longest row within the budget; at least one."""
    cut: list[list[PlannedRow]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if cut and (len(cut[-1]) + 1) * cut[-1][0].length <= micro_batch_tokens:
            cut[-1].append(row)
        else:
            cut.append([row])
    return cut


def _aligned(cut: Sequence[Sequence[Sequence[PlannedRow]]]) -> list[tuple[MicroBatch, ...]]:
    """The same number of micro-batches on every rank."""
    passes = max(len(micro_batches) for micro_batches in cut)
    padded = [[*micro_batches, *([()] * (passes - len(micro_batches)))] for micro_batches in cut]
    return [tuple(MicroBatch(rows=tuple(rows)) for rows in micro_batches) for micro_batches in padded]
