"""How an optimizer batch is cut: whole groups to ranks, by cost; their rows, longest first, to micro-batches.

Rows of a group may share their prompt in a pass (`Tree`). Every rank gets the same number of micro-batches, because
under ZeRO each pass is a collective.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Item = TypeVar("Item")
SharePrompts = Literal["auto", "on", "off"]

_PAIRS_PER_TOKEN = 16384
"""Pairs of tokens whose attention costs as much as a token's linear layers: twelve times a width of 1,365."""
_WORTHWHILE = 0.1
"""Part of a group's tokens from which sharing its prompt pays: it costs calls of the attention kernel."""


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


Tree = tuple[PlannedRow, ...]
"""Rows of one group that share their prompt in a pass: it is computed once. One row: it has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of one forward and backward pass. Without rows: a pass that only keeps the ranks in step."""

    trees: tuple[Tree, ...]

    @property
    def rows(self) -> tuple[PlannedRow, ...]:
        """Of all trees, in order."""
        return tuple(itertools.chain.from_iterable(self.trees))


def tokens_of(tree: Tree) -> int:
    """Tokens that a pass computes for it."""
    return tree[0].prompt_tokens + sum(row.completion_tokens for row in tree)


def pairs_of(tree: Tree) -> int:
    """Pairs of tokens, half of which a causal mask hides: each row's, but the prompt's own only once."""
    prompt = tree[0].prompt_tokens
    return sum(row.length**2 for row in tree) - (len(tree) - 1) * prompt**2


def grow_trees(rows: Sequence[PlannedRow], micro_batch_tokens: int, share_prompts: SharePrompts) -> list[Tree]:
    """One group's rows as trees that fit into a pass, the longest rows first; a row alone may be longer.

    A prompt is repeated in each tree. `auto`: one tree for each row unless sharing saves enough tokens.
    """
    alone: list[Tree] = [(row,) for row in rows]
    if share_prompts == "off" or len(rows) < 2:
        return alone
    room = micro_batch_tokens - rows[0].prompt_tokens
    grown: list[Tree] = [tuple(tree) for tree in _first_fit(rows, lambda row: row.completion_tokens, room)]
    whole = sum(map(tokens_of, alone))
    saved = whole - sum(map(tokens_of, grown))
    return grown if share_prompts == "on" or saved >= _WORTHWHILE * whole else alone


def balance(
    trees_PG: Sequence[Sequence[Tree]], ranks: int, micro_batch_tokens: int, *, packed: bool
) -> list[list[Tree]]:
    """Give whole groups to ranks: the costliest first, each to the rank that has least.

    A group's cost is what its passes would compute if it were alone.
    """
    costs = {index: _cost(trees, micro_batch_tokens, packed=packed) for index, trees in enumerate(trees_PG) if trees}
    loads, assigned = [0.0] * ranks, [list[int]() for _ in range(ranks)]
    for index in sorted(costs, key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        assigned[rank].append(index)
    return [[tree for index in sorted(indices) for tree in trees_PG[index]] for indices in assigned]


def _cost(trees: Sequence[Tree], micro_batch_tokens: int, *, packed: bool) -> float:
    """In tokens of linear layers; attention's pairs of tokens besides."""
    if packed:
        return sum(tokens_of(tree) + pairs_of(tree) / _PAIRS_PER_TOKEN for tree in trees)
    cut = cut_micro_batches(trees, micro_batch_tokens, packed=False)
    widths = [(len(micro), tokens_of(micro[0])) for micro in cut]
    return sum(count * (width + width**2 / _PAIRS_PER_TOKEN) for count, width in widths)


def cut_micro_batches(trees: Sequence[Tree], micro_batch_tokens: int, *, packed: bool = False) -> list[list[Tree]]:
    """Largest trees first, as many to a pass as its budget allows; at least one.

    Packed: each to the first pass that has room for it. Padded, with a row in each tree: as many neighbours as keep
    rows x longest row within the budget.
    """
    if packed:
        return _first_fit(trees, tokens_of, micro_batch_tokens)
    cut: list[list[Tree]] = []
    for tree in sorted(trees, key=lambda tree: -tokens_of(tree)):
        if cut and (len(cut[-1]) + 1) * tokens_of(cut[-1][0]) <= micro_batch_tokens:
            cut[-1].append(tree)
        else:
            cut.append([tree])
    return cut


def _first_fit(items: Sequence[Item], size: Callable[[Item], int], room: int) -> list[list[Item]]:
    """Largest items first, each to the first bin that has room for it; one that is too large has a bin of its own."""
    bins: list[list[Item]] = []
    left: list[int] = []
    for item in sorted(items, key=lambda item: -size(item)):
        index = next((index for index, room_left in enumerate(left) if room_left >= size(item)), None)
        if index is None:
            index = len(bins)
            bins.append([])
            left.append(room)
        bins[index].append(item)
        left[index] -= size(item)
    return bins


def aligned(cut: Sequence[Sequence[Sequence[Tree]]]) -> list[tuple[MicroBatch, ...]]:
    """The same number of micro-batches on every rank."""
    passes = max(len(micro_batches) for micro_batches in cut)
    padded = [[*micro_batches, *([()] * (passes - len(micro_batches)))] for micro_batches in cut]
    return [tuple(MicroBatch(trees=tuple(trees)) for trees in micro_batches) for micro_batches in padded]
