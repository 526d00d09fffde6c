"""How an optimizer batch is cut: whole groups to ranks, by tokens; their rows, by length, to micro-batches.

Every rank gets the same number of micro-batches, because under ZeRO each pass is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    kl_weight: float = 0.0
    """A token's advantage is `advantage` plus this times the KL from it to the end (`BatchAdvantages`)."""
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


def aligned(cut: Sequence[Sequence[Sequence[PlannedRow]]]) -> list[tuple[MicroBatch, ...]]:
    """The same number of micro-batches on every rank."""
    passes = max(len(micro_batches) for micro_batches in cut)
    padded = [[*micro_batches, *([()] * (passes - len(micro_batches)))] for micro_batches in cut]
    return [tuple(MicroBatch(rows=tuple(rows)) for rows in micro_batches) for micro_batches in padded]
