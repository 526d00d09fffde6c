"""Slots in order: what is taken when, and what a slot that is emptied holds up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.actors.buffer import SlotBuffer
from funicular.actors.types import EmptySlot


def filling(slot: int) -> EmptySlot:
    return EmptySlot(slot=slot, reason="test")


async def taken(buffer: SlotBuffer, first: int, count: int) -> list[int] | None:
    """Slots of the batch; None: it is not whole."""
    try:
        return [group.slot for group in await asyncio.wait_for(buffer.take(first, count), 0.01)]
    except TimeoutError:
        return None


@given(order=st.permutations(range(6)))
def test_a_batch_is_taken_once_its_slots_are_filled_in_whatever_order(order: list[int]) -> None:
    async def fill_and_take() -> None:
        buffer = SlotBuffer(6)
        for slot in order:
            expected = [0, 1, 2] if {0, 1, 2} <= set(order[: order.index(slot)]) else None
            task = asyncio.ensure_future(buffer.take(0, 3))
            await asyncio.sleep(0)
            assert task.done() == (expected is not None)
            task.cancel()
            await buffer.fill(filling(slot))
        assert await taken(buffer, 0, 3) == [0, 1, 2]
        await buffer.release(3)
        assert await taken(buffer, 3, 3) == [3, 4, 5]

    asyncio.run(fill_and_take())


async def test_slots_are_admitted_as_far_as_the_released_ones_allow() -> None:
    buffer = SlotBuffer(4)
    assert await buffer.admit(0) == 4
    beyond = asyncio.ensure_future(buffer.admit(4))
    await asyncio.sleep(0)
    assert not beyond.done()
    for slot in range(2):
        await buffer.fill(filling(slot))
    await buffer.release(2)
    assert await beyond == 6


async def test_a_slot_that_was_emptied_holds_up_its_batch_until_it_is_filled_again() -> None:
    buffer = SlotBuffer(4)
    for slot in range(4):
        await buffer.fill(filling(slot))
    await buffer.empty(1)
    assert await taken(buffer, 0, 2) is None
    await buffer.fill(filling(1))
    assert await taken(buffer, 0, 2) == [0, 1]


async def test_a_buffer_that_begins_later_knows_its_first_slot_and_refuses_those_not_admitted() -> None:
    buffer = SlotBuffer(2, released=10)
    await buffer.fill(filling(9))  # of a batch that was released: late, and of no use
    await buffer.fill(filling(11))
    assert await taken(buffer, 10, 2) is None
    await buffer.fill(filling(10))
    assert await taken(buffer, 10, 2) == [10, 11]
    with pytest.raises(ValueError, match=r"slot 12 filled before it was admitted \(next limit 12\)"):
        await buffer.fill(filling(12))
