"""Stages that run side by side, of which the first to end ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_to_end(main: Coroutine[Any, Any, str], *others: Coroutine[Any, Any, None]) -> str:
    """Run all until one ends, cancel and await the rest, and return what `main` returned.

    Raises:
        Exception: what the stage that ended first raised; `main`'s comes before the others'. An exception group of
            one is raised as its only member.
    """
    first = asyncio.create_task(main)
    stages: list[asyncio.Task[Any]] = [first, *(asyncio.create_task(stage) for stage in others)]
    try:
        await asyncio.wait(stages, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [stage for stage in stages if stage.done()]
        for stage in stages:
            stage.cancel()
        await asyncio.gather(*stages, return_exceptions=True)
    for stage in ended:
        if error := stage.exception():
            raise _only_member(error)
    return first.result()


def _only_member(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
