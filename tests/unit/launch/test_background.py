"""Blocking calls on threads, with a deadline for whoever waits."""

from __future__ import annotations

import threading

import pytest

from funicular.cluster.calls import DeadlineExceeded
from funicular.launch.background import each, in_background, wait_async, within


def test_a_call_that_hangs_ends_the_wait_with_what_was_awaited() -> None:
    forever = threading.Event()
    with pytest.raises(DeadlineExceeded, match="the bucket"):
        within(forever.wait, 0.05, "the bucket")
    forever.set()


def test_what_a_call_raises_is_raised_also_if_it_is_a_time_out_of_its_own() -> None:
    def fail() -> None:
        raise TimeoutError("the server's")

    with pytest.raises(TimeoutError, match="the server's"):
        within(fail, 60, "the bucket")


async def test_a_coroutine_waits_with_a_deadline_and_the_call_goes_on() -> None:
    go = threading.Event()
    future = in_background(lambda: go.wait() and 7, "slow")
    with pytest.raises(DeadlineExceeded, match="the bucket"):
        await wait_async(future, 0.05, "the bucket")
    go.set()
    assert await wait_async(future, 60, "the bucket") == 7


def test_errors_come_by_item_and_the_others_are_done_all_the_same() -> None:
    done = []

    def work(item: int) -> None:
        if item % 2:
            raise ValueError(str(item))
        done.append(item)

    errors = each(work, range(7), threads=3, name="work")
    assert sorted(errors) == [1, 3, 5]
    assert sorted(done) == [0, 2, 4, 6]
