"""Waiting for Ray, always with a deadline and a sentence that says for what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import RayTaskError


class DeadlineExceeded(TimeoutError):
    """A call did not answer in time."""

    def __init__(self, what: str, deadline_s: float) -> None:
        super().__init__(f"waited {deadline_s:.0f} s for {what}")
        self.what = what
        self.deadline_s = deadline_s


async def call(ref: Awaitable[Any], *, deadline_s: float | None, what: str) -> Any:
    """Await an actor call and return its result.

    Raises:
        DeadlineExceeded: no answer within `deadline_s` seconds (None: no deadline here, because something else
            watches the call); the call itself may still be running.
        Exception: whatever the actor's method raised, as itself rather than wrapped by Ray.
    """
    try:
        async with asyncio.timeout(deadline_s) as limit:
            return await ref
    except RayTaskError as error:  # before TimeoutError: a remote one is no deadline of ours
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded(what, deadline_s or 0.0) from error
        raise
