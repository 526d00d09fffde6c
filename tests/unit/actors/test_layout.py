from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from funicular.actors.layout import Layout, SharedSpan
from tests.layouts import layouts, paths

CPU = torch.device("cpu")


def test_spans_that_go_on_from_others_are_seen_as_one_row_each() -> None:
    """A prompt of 3 with two completions, one of which goes on in two ways, and a row of its own behind."""
    layout = Layout(lengths=(3, 2, 1, 2, 4, 2), parents=(None, 0, 1, 1, 0, None))
    assert layout.shares
    assert layout.positions(CPU).tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 3, 4, 5, 6, 0, 1]]
    assert layout.shared_spans() == (SharedSpan(start=0, end=3, last=12), SharedSpan(start=3, end=5, last=8))
    longer = layout.followed_by(2)
    assert longer.positions(CPU)[0, -2:].tolist() == [0, 0]
    assert longer.shared_spans() == layout.shared_spans()


def test_rows_of_their_own_share_nothing() -> None:
    layout = Layout.of_rows((2, 3))
    assert not layout.shares
    assert layout.shared_spans() == ()
    assert layout.positions(CPU).tolist() == [[0, 1, 0, 1, 2]]


@pytest.mark.parametrize(
    ("lengths", "parents"),
    [((3, 2), (None, 1)), ((3, 2), (1, None)), ((2, 2, 2), (None, None, 0)), ((2, 0), (None, 0))],
)
def test_spans_out_of_order_and_empty_ones_are_refused(
    lengths: tuple[int, ...], parents: tuple[int | None, ...]
) -> None:
    with pytest.raises(ValueError, match=r"span [01 2]+ of \d tokens cannot go on from span"):
        Layout(lengths=lengths, parents=parents)


@settings(deadline=None)
@given(layouts())
def test_a_token_has_the_position_of_its_place_in_its_row(layout: Layout) -> None:
    positions = layout.positions(CPU)[0]
    for path in paths(layout):
        assert positions[path].tolist() == list(range(len(path)))
