"""Packed passes whose rows share beginnings, drawn by hypothesis, and the rows that they stand for."""

from __future__ import annotations

from hypothesis import strategies as st

from funicular.actors.layout import Layout


@st.composite
def layouts(draw: st.DrawFn, longest: int = 12) -> Layout:
    """Up to ten spans, depth first; some share nothing."""
    lengths: list[int] = []
    parents: list[int | None] = []
    path: list[int] = []
    for index in range(draw(st.integers(1, 10))):
        depth = draw(st.integers(0, len(path)))
        path = path[:depth]
        parents.append(path[-1] if path else None)
        lengths.append(draw(st.integers(1, longest)))
        path.append(index)
    return Layout(lengths=tuple(lengths), parents=tuple(parents))


def paths(layout: Layout) -> list[list[int]]:
    """Of each span: the positions in the pass of its row's tokens, from the row's first to the span's last."""
    found: list[list[int]] = []
    start = 0
    for length, parent in zip(layout.lengths, layout.parents, strict=True):
        before = [] if parent is None else found[parent]
        found.append([*before, *range(start, start + length)])
        start += length
    return found
