"""Waiting for Ray: what is raised, and by whose deadline."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayTaskError

from funicular.cluster.calls import DeadlineExceeded, call


async def test_a_late_answer_says_what_was_awaited() -> None:
    with pytest.raises(DeadlineExceeded, match="for generator-0: health"):
        await call(asyncio.sleep(60), deadline_s=0.01, what="generator-0: health")


async def test_a_remote_error_is_raised_as_itself() -> None:
    async def fail() -> None:
        raise RayTaskError("step", "traceback", KeyError("x"))

    with pytest.raises(KeyError):
        await call(fail(), deadline_s=1, what="step")


async def test_a_remote_timeout_is_not_taken_for_our_deadline() -> None:
    async def fail() -> None:
        raise RayTaskError("start", "traceback", TimeoutError("theirs"))

    with pytest.raises(TimeoutError, match="theirs") as caught:
        await call(fail(), deadline_s=60, what="start")
    assert not isinstance(caught.value, DeadlineExceeded)


async def test_cancelling_the_caller_is_never_lost() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    caller = asyncio.create_task(call(answer, deadline_s=60, what="x"))
    await asyncio.sleep(0)
    answer.set_result(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
