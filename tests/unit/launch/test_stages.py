"""Stages side by side."""

from __future__ import annotations

import asyncio

import pytest

from funicular.actors.errors import RunStopped
from funicular.launch.stages import first_to_end


async def forever() -> None:
    await asyncio.Event().wait()


async def test_the_main_stage_ends_the_others() -> None:
    ended: list[str] = []

    async def other() -> None:
        try:
            await forever()
        finally:
            ended.append("other")

    async def main() -> str:
        await asyncio.sleep(0.01)
        return "finished"

    assert await first_to_end(main(), other()) == "finished"
    assert ended == ["other"]


async def test_many_failures_of_one_stage_are_raised_as_the_first() -> None:
    async def main() -> str:
        await forever()
        return "never"

    async def fail(name: str) -> None:
        raise RunStopped(name)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in ("first", "second", "third"):
                tasks.create_task(fail(name))

    with pytest.raises(RunStopped, match="first"):
        await first_to_end(main(), group())


async def test_the_main_stages_failure_comes_before_the_others() -> None:
    async def main() -> str:
        raise RunStopped("main")

    async def other() -> None:
        raise RunStopped("other")

    with pytest.raises(RunStopped, match="main"):
        await first_to_end(main(), other())
