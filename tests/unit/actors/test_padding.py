"""What may share a batched call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from funicular.actors.padding import may_join


@given(st.integers(1, 4000), st.integers(1, 40))
def test_equals_always_join(length: int, count: int) -> None:
    pairs = length**2
    assert may_join(pairs, batch_pairs=count * pairs, padded_before=count * pairs, padded_after=(count + 1) * pairs)


def test_what_would_be_mostly_padding_itself_does_not() -> None:
    long, short = 1000**2, 100**2
    assert not may_join(short, batch_pairs=10 * long, padded_before=10 * long, padded_after=11 * long)


def test_many_that_waste_a_little_each_do_not_waste_much_together() -> None:
    long, shorter = 200**2, 180**2
    joined, pairs, padded = 0, long, long
    while may_join(shorter, batch_pairs=pairs, padded_before=padded, padded_after=padded + long):
        joined, pairs, padded = joined + 1, pairs + shorter, padded + long
        assert padded <= 1.25 * pairs + 4096
        if joined == 100:
            break
    assert joined > 0
