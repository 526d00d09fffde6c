"""What a run tells between two steps, over fakes; with a real Ray: tests/integration/test_ray_metrics.py."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from funicular.actors.readings import Reading
from funicular.actors.types import EmptySlot
from funicular.launch import live_gauges
from funicular.launch.live_gauges import LiveGauges, told_live
from funicular.launch.loop import train
from funicular.launch.run import Run
from tests.builders import make_group
from tests.fakes import fake_run


async def now_of(run: Run) -> dict[tuple[str, ...], float]:
    return {(reading.name, *reading.labels.values()): reading.value for reading in await run.now()}


async def test_slots_are_told_by_state_and_batches_when_they_are_whole(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_staleness=2)
    run.new_buffer(0)

    async def slots() -> list[float]:
        now = await now_of(run)
        states = ("working", "filled", "in_training", "free")
        return [*(now["now/slots", state] for state in states), now["now/batches_waiting",]]

    assert await slots() == [0, 0, 0, 6, 0]
    for _ in range(5):
        await run.buffer.reserve()
    await run.buffer.fill(EmptySlot(slot=1, reason="void"))
    assert await slots() == [4, 1, 0, 1, 0]
    for slot in (0, 3, 2):
        await run.buffer.fill(EmptySlot(slot=slot, reason="void"))
    assert await slots() == [1, 4, 0, 1, 2]
    await run.buffer.take()
    assert await slots() == [1, 2, 2, 1, 1]
    await run.buffer.empty(0)
    assert await slots() == [2, 3, 0, 1, 0], "its payload was lost: the batch will be taken anew"
    await run.buffer.fill(EmptySlot(slot=0, reason="void"))
    await run.buffer.take()
    await run.buffer.release()
    assert await slots() == [1, 2, 0, 3, 1]


async def test_accounts_ledger_and_budget_are_told_before_the_first_attempt_and_after_the_last(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=3, max_restarts=4)
    now = await now_of(run)
    assert (now["now/step",], now["now/version", "weight-sync"], now["now/groups_open",]) == (0, -1, 0)
    assert not [name for name in now if name[0] == "now/slots"], "there is no buffer yet"
    run.budget.spend("scorer-0", "it died")
    await train(run)
    now = await now_of(run)
    assert (now["now/step",], now["now/restarts_left",]) == (3, 3)
    assert now["now/version", "weight-sync"] == run.weights.version
    assert now["now/groups_open",] == run.accounts.open_groups
    assert now["now/ledger_bytes", "written"] == run.accounts.ledger.path.stat().st_size
    assert now["now/ledger_bytes", "on_disk"] <= now["now/ledger_bytes", "written"]
    assert 0 <= time.time() - now["now/ledger_event_at_s",] < 60


async def test_open_groups_are_those_that_are_issued_and_not_settled(tmp_path: Path) -> None:
    accounts = fake_run(tmp_path).accounts
    first, second = accounts.open(0), accounts.open(1)
    assert accounts.open_groups == 2
    accounts.drop(first, "void")
    accounts.trained(1, 1, [make_group(second.group_id, rewards_G=[1.0, 0.0], lengths_G=[4, 4], slot=1)])
    assert accounts.open_groups == 0


async def test_a_part_that_cannot_say_what_it_does_stops_neither_the_run_nor_the_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[Reading]] = []
    monkeypatch.setattr(live_gauges, "PERIOD_S", 0.001)
    monkeypatch.setattr(LiveGauges, "set", lambda self, readings: told.append(readings))
    run = fake_run(tmp_path, max_steps=20)
    good, tries = run.scorers.now, 0

    async def now() -> list[Reading]:
        nonlocal tries
        tries += 1
        if tries % 2:
            raise RuntimeError("no answer")
        return await good()

    monkeypatch.setattr(run.scorers, "now", now)
    async with told_live(run):
        assert await train(run) == "finished"
        while len(told) < 2:
            await asyncio.sleep(0.001)
    assert tries > 2
    ended = len(told)
    await asyncio.sleep(0.01)
    assert len(told) == ended


async def test_a_part_in_two_places_is_asked_once(tmp_path: Path) -> None:
    run: Any = fake_run(tmp_path)
    run.given = run.generators
    names = [(reading.name, *reading.labels.values()) for reading in await run.now()]
    assert len(names) == len(set(names))
