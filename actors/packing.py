"""How an optimizer batch is cut: whole groups to ranks, by cost; their rows, longest first, to micro-batches.

Every rank gets the same number of micro-batches, because under ZeRO each pass is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_PAIRS_PER_TOKEN = 16384
"""Pairs of tokens whose attention costs as much as a token's linear layers: twelve times a width of 1,365."""


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


def balance(
    rows_PG: Sequence[Sequence[PlannedRow]], ranks: int, micro_batch_tokens: int, *, packed: bool
) -> list[list[PlannedRow]]:
    """Give whole groups to ranks: the costliest first, each to the rank that has least.

    A group's cost is what its passes would compute if it were alone.
    """
    costs = {index: _cost(rows, micro_batch_tokens, packed=packed) for index, rows in enumerate(rows_PG) if rows}
    loads, assigned = [0.0] * ranks, [list[int]() for _ in range(ranks)]
    for index in sorted(costs, key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        assigned[rank].append(index)
    return [[row for index in sorted(indices) for row in rows_PG[index]] for indices in assigned]


def _cost(rows: Sequence[PlannedRow], micro_batch_tokens: int, *, packed: bool) -> float:
    """In tokens of linear layers; attention's pairs of tokens besides."""
    if packed:
        return sum(row.length + row.length**2 / _PAIRS_PER_TOKEN for row in rows)
    cut = cut_micro_batches(rows, micro_batch_tokens, packed=False)
    widths = [(len(micro), micro[0].length) for micro in cut]
    return sum(count * (width + width**2 / _PAIRS_PER_TOKEN) for count, width in widths)


def cut_micro_batches(
    rows: Sequence[PlannedRow], micro_batch_tokens: int, *, packed: bool = False
) -> list[list[PlannedRow]]:
    """Longest rows first, as many to a pass as its budget allows; at least one.

    Packed: each row to the first pass that has room for it. Padded: as many neighbours as keep rows x longest row
    within the budget.
    """
    cut: list[list[PlannedRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if packed:
            index = next((index for index, left in enumerate(room) if left >= row.length), None)
        else:
            index = len(cut) - 1 if cut and room[-1] >= cut[-1][0].length else None
        if index is None:
            index = len(cut)
            cut.append([])
            room.append(micro_batch_tokens)
        cut[index].append(row)
        room[index] -= row.length if packed else cut[index][0].length
    return cut


def aligned(cut: Sequence[Sequence[Sequence[PlannedRow]]]) -> list[tuple[MicroBatch, ...]]:
    """The same number of micro-batches on every rank."""
    passes = max(len(micro_batches) for micro_batches in cut)
    padded = [[*micro_batches, *([()] * (passes - len(micro_batches)))] for micro_batches in cut]
    return [tuple(MicroBatch(rows=tuple(rows)) for rows in micro_batches) for micro_batches in padded]
