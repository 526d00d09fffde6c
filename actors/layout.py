"""How the tokens of a packed pass hang together: spans, each of which may go on where an earlier one ends.

    span 0: prompt   span 1: completion   span 2: completion   span 3: another row
            │             │ (goes on from 0)    │ (goes on from 0)

Spans stand one after the other in one sequence. A token sees its own span up to itself, and the whole of each span that
its own goes on from. A row that shares nothing is one span, prompt and completion together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSpan:
    """A span that others go on from; those, and what goes on from them, stand right behind it."""

    start: int
    end: int
    """Its tokens."""
    last: int
    """End of the tokens that see all of it, which begin at `end`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Spans of a pass, depth first: whatever goes on from a span stands behind it, before anything else does.

    Raises:
        ValueError: they do not.
    """

    lengths: tuple[int, ...]
    """Tokens of each span."""
    parents: tuple[int | None, ...]
    """Index of the span that each goes on from; None: it begins a row."""

    def __post_init__(self) -> None:
        path: list[int] = []
        for index, (length, parent) in enumerate(zip(self.lengths, self.parents, strict=True)):
            while path and path[-1] != parent:
                path.pop()
            if length < 1 or (parent is not None and not path):
                raise ValueError(f"span {index} of {length} tokens cannot go on from span {parent}")
            path.append(index)

    @classmethod
    def of_rows(cls, lengths: Sequence[int]) -> Layout:
        """Rows that share nothing."""
        return cls(lengths=tuple(lengths), parents=(None,) * len(lengths))

    @property
    def shares(self) -> bool:
        """Whether anything is seen from several spans."""
        return any(parent is not None for parent in self.parents)

    def followed_by(self, rows: int) -> Layout:
        """With rows of one token behind it."""
        return Layout(lengths=self.lengths + (1,) * rows, parents=self.parents + (None,) * rows)

    def positions(self, device: torch.device) -> torch.Tensor:
        """(1, T) positions: of each token the number of tokens before it that its row has."""
        firsts: list[int] = []
        for parent in self.parents:
            firsts.append(0 if parent is None else firsts[parent] + self.lengths[parent])
        spans = zip(firsts, self.lengths, strict=True)
        return torch.cat([torch.arange(first, first + length, device=device) for first, length in spans])[None]

    def shared_spans(self) -> tuple[SharedSpan, ...]:
        """Those that others go on from, in order."""
        ends = list(accumulate(self.lengths))
        lasts = list(ends)
        for index in reversed(range(len(ends))):
            parent = self.parents[index]
            if parent is not None:
                lasts[parent] = max(lasts[parent], lasts[index])
        return tuple(
            SharedSpan(start=end - length, end=end, last=last)
            for length, end, last in zip(self.lengths, ends, lasts, strict=True)
            if last > end
        )
