"""Spans of a pass in batches of about the same length, wherever they stand: `tree_attention.py` makes a call of each.

A batch is made once for a pass and serves every layer. Short spans are the reason: a call for each group, over some
tens of tokens, costs more in the call than in the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import torch

from funicular.actors.layout import Layout, SharedSpan
from funicular.actors.padding import may_join

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Stretches of a pass's tokens side by side, (rows, width), padded on the right where they are shorter.

    Where they are of one length and equally far apart, a single one among them, they are a view of the pass.
    """

    rows: int
    width: int
    distance: int | None
    """Tokens from each start to the next; None: they are no view."""
    padded: torch.Tensor
    """(rows * width,) token of each place; a padded place has its stretch's last token again."""
    tokens: torch.Tensor
    """(n,) the tokens, each once."""
    first: int
    """The first stretch's first token."""
    places: torch.Tensor | None
    """(n,) the place of each; None: nothing is padded."""
    mask: torch.Tensor | None
    """(rows, 1, 1, width) to add to scores of these as keys; None: nothing is padded."""

    @classmethod
    def of(cls, bounds: Sequence[tuple[int, int]], device: torch.device) -> Stretches:
        """Of tokens from the first bound to before the second."""
        starts, ends = torch.tensor(bounds).unbind(1)
        width = int((ends - starts).max())
        columns = torch.arange(width)
        padded = torch.minimum(starts[:, None] + columns, ends[:, None] - 1).reshape(-1)
        real = (columns < (ends - starts)[:, None]).reshape(-1)
        full = bool(real.all())
        mask = torch.zeros(real.shape).masked_fill_(~real, -torch.inf).view(len(bounds), 1, 1, width)
        return cls(
            rows=len(bounds),
            width=width,
            distance=_distance(bounds) if full else None,
            padded=padded.to(device),
            tokens=padded[real].to(device),
            first=bounds[0][0],
            places=None if full else real.nonzero()[:, 0].to(device),
            mask=None if full else mask.to(device),
        )

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """(T, heads, d) of a pass to (rows, heads, width, d)."""
        return self._rows_of(tensor).transpose(1, 2)

    def take_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same with zeros in padded places: nothing comes back from there."""
        if self.places is None:
            return self.take(tensor)
        taken = tensor.new_zeros(self.rows * self.width, *tensor.shape[1:])
        taken.index_copy_(0, self.places, tensor.index_select(0, self.tokens))
        return taken.unflatten(0, (self.rows, self.width)).transpose(1, 2)

    def put(self, tensor: torch.Tensor, rows: torch.Tensor) -> None:
        """Write (rows, heads, width, d) to where it belongs in (T, heads, d); padded places are dropped."""
        if self.distance is not None:
            self._rows_of(tensor).copy_(rows.transpose(1, 2))
        else:
            tensor.index_copy_(0, self.tokens, self._drop(rows))

    def add(self, tensor: torch.Tensor, rows: torch.Tensor) -> None:
        """The same, added to what stands there."""
        if self.distance is not None:
            self._rows_of(tensor).add_(rows.transpose(1, 2))
        else:
            tensor.index_add_(0, self.tokens, self._drop(rows))

    def seen(self, dtype: torch.dtype) -> torch.Tensor | None:
        """`mask` in the scores' type."""
        return None if self.mask is None else self.mask.to(dtype)

    def _rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """(T, heads, d) to (rows, width, heads, d): a view where `distance` says so."""
        if self.distance is None:
            return tensor.index_select(0, self.padded).unflatten(0, (self.rows, self.width))
        step, *strides = tensor.stride()
        return tensor.as_strided(
            (self.rows, self.width, *tensor.shape[1:]),
            (self.distance * step, step, *strides),
            tensor.storage_offset() + self.first * step,
        )

    def _drop(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


def _distance(bounds: Sequence[tuple[int, int]]) -> int | None:
    """From each start to the next, if it is always the same and forward: no view goes back."""
    distances = {second[0] - first[0] for first, second in pairwise(bounds)} or {0}
    return distances.pop() if len(distances) == 1 and min(distances) >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBatch:
    """Spans that others go on from, and for each the tokens behind it that see all of it."""

    keys: Stretches
    queries: Stretches


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBatches:
    """The calls that a pass's attention is made of."""

    own: tuple[Stretches, ...]
    """Spans: each token sees its own up to itself. Together every token once."""
    shared: tuple[SharedBatch, ...]


def tree_batches(layout: Layout, device: torch.device) -> TreeBatches:
    """Batches of a layout's spans, of which little is padding (`padding.py`).

    Keys are padded on a CPU only, whose kernel takes a mask of keys; FlashAttention's does not.
    """
    ends = list(accumulate(layout.lengths))
    spans = [(end - length, end) for length, end in zip(layout.lengths, ends, strict=True)]
    own = _batches(spans, size=lambda span: (span[1] - span[0], span[1] - span[0]), alike=False)
    shared = (
        batch
        for level in _levels(layout.shared_spans())
        for batch in _batches(
            level, size=lambda span: (span.end - span.start, span.last - span.end), alike=device.type != "cpu"
        )
    )
    return TreeBatches(
        own=tuple(Stretches.of(batch, device) for batch in own),
        shared=tuple(
            SharedBatch(
                keys=Stretches.of([(span.start, span.end) for span in batch], device),
                queries=Stretches.of([(span.end, span.last) for span in batch], device),
            )
            for batch in shared
        ),
    )


def _levels(spans: Sequence[SharedSpan]) -> list[list[SharedSpan]]:
    """Spans, given in order, by how many others they go on from. In one level no token sees two of them."""
    levels: list[list[SharedSpan]] = []
    path: list[SharedSpan] = []
    for span in spans:
        while path and path[-1].last <= span.start:
            path.pop()
        if len(path) == len(levels):
            levels.append([])
        levels[len(path)].append(span)
        path.append(span)
    return levels


def _batches(items: Sequence[_T], *, size: Callable[[_T], tuple[int, int]], alike: bool) -> Iterator[list[_T]]:
    """Cut items, sorted by size, where a batch would be too much padding.

    Args:
        size: keys and queries of an item.
        alike: only items of the same number of keys may be in a batch.
    """
    batch: list[_T] = []
    pairs = padded = most_keys = most_queries = 0
    for item in sorted(items, key=size, reverse=True):
        keys, queries = size(item)
        with_it = (len(batch) + 1) * max(most_keys, keys) * max(most_queries, queries)
        joins = may_join(keys * queries, batch_pairs=pairs, padded_before=padded, padded_after=with_it)
        if batch and (not joins or (alike and keys != most_keys)):
            yield batch
            batch, pairs, most_keys, most_queries = [], 0, 0, 0
        batch.append(item)
        pairs += keys * queries
        most_keys, most_queries = max(most_keys, keys), max(most_queries, queries)
        padded = len(batch) * most_keys * most_queries
    if batch:
        yield batch
