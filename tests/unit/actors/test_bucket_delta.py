"""A delta makes exactly the new bucket of the old one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.actors.bucket_delta import apply, encode


def bucket(seed: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


@given(st.sampled_from([2, 4]), st.integers(1, 20), st.floats(0, 1), st.integers(0, 1000))
def test_applied_once_or_twice_it_gives_the_new_bucket_bit_for_bit(
    itemsize: int, lines: int, part: float, seed: int
) -> None:
    old = bucket(seed, 64 * lines)
    new = np.where(np.random.default_rng(seed).random(old.size) < part, bucket(seed + 1, old.size), old)
    delta = encode(new, old, itemsize)
    if delta is None:
        changed = np.count_nonzero(new.view(f"u{itemsize}") != old.view(f"u{itemsize}"))
        assert changed * itemsize + old.size // itemsize // 8 >= old.size
        return
    assert delta.nbytes < new.nbytes
    for _ in range(2):
        apply(delta, old, itemsize)
        assert np.array_equal(old, new)


def test_nothing_changed_costs_a_bit_for_each_element() -> None:
    old = bucket(0, 6400)
    delta = encode(old.copy(), old, 2)
    assert delta is not None
    assert delta.nbytes == 400


@pytest.mark.parametrize("length", [10, 411, 800])
def test_a_delta_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="does not fit a bucket of 6400"):
        apply(np.zeros(length, dtype=np.uint8), bucket(0, 6400), 2)
