"""Stages that run side by side, of which the first to end ends all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def first_to_end(main: Coroutine[Any, Any, str], *others: Coroutine[Any, Any, None]) -> str:
    """Run all until one ends, cancel and await the rest, and return what `main` returned.

    Raises:
        Exception: what the stage that ended first raised; `main`'s comes before the others'. Of an exception group
            its first member is raised, and the others are logged.
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
            raise _first_member(error)
    return first.result()


def _first_member(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        for other in error.exceptions[1:]:
            log.warning("also: %s: %s", type(other).__name__, other)
        error = error.exceptions[0]
    return error
