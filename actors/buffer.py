"""The rollout buffer: slots in order, references to scored groups, and the bound on staleness.

Invariant: slot s may be worked on only while s < released + capacity, and slots are taken in order. With
capacity = (max_staleness + 1) * groups_per_step, a group is trained at most `max_staleness` versions after the one
that began it: when slot s is admitted, every batch up to (s - capacity) has its weights committed.

    who                waits for                          is woken by
    admit(slot)        slot < released + capacity         release
    take(first, n)     all slots below first+n filled     fill

Every call names its slots and may be repeated, so a caller that lost the actor makes a new one, fills in what it
still holds, and asks again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from funicular.actors.types import EmptySlot, ScoredGroup

Filling = ScoredGroup | EmptySlot


class SlotBuffer:
    """The buffer's logic, without Ray.

    Args:
        capacity: slots that may be unreleased at the same time.
        released: number of slots released so far; slots are numbered from 0 over the whole run.
    """

    def __init__(self, capacity: int, released: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: a buffer needs at least one slot")
        self.capacity = capacity
        self.released = released
        self._filled: dict[int, Filling] = {}
        self._head = released
        """Oldest slot that is not filled; kept, because looking for it at every fill would take a batch's square."""
        self._changed = asyncio.Condition()

    async def admit(self, slot: int) -> int:
        """Return when `slot` may be worked on: the first slot that may not."""
        async with self._changed:
            await self._changed.wait_for(lambda: slot < self.released + self.capacity)
            return self.released + self.capacity

    async def fill(self, filling: Filling) -> None:
        """Put a group, or word of its failure, into its slot.

        Raises:
            ValueError: the slot was never admitted.
        """
        async with self._changed:
            if filling.slot >= self.released + self.capacity:
                limit = self.released + self.capacity
                raise ValueError(f"slot {filling.slot} filled before it was admitted (next limit {limit})")
            if filling.slot >= self.released:
                self._filled[filling.slot] = filling
                self._find_head(self._head)
                self._changed.notify_all()

    async def take(self, first: int, count: int) -> tuple[Filling, ...]:
        """Return the contents of slots first .. first+count-1, once these and all before are filled.

        They stay until released.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._head >= first + count)
            return tuple(self._filled[slot] for slot in range(first, first + count))

    async def empty(self, slot: int) -> None:
        """Forget a slot's content, to be filled again: its payload was lost."""
        async with self._changed:
            if self._filled.pop(slot, None) is not None:
                self._find_head(min(self._head, slot))

    async def release(self, upto: int) -> None:
        """Release every slot below `upto`: the weights that they made are committed."""
        async with self._changed:
            self.released = max(self.released, upto)
            for slot in [slot for slot in self._filled if slot < self.released]:
                del self._filled[slot]
            self._find_head(max(self._head, self.released))
            self._changed.notify_all()

    def _find_head(self, start: int) -> None:
        self._head = start
        while self._head in self._filled:
            self._head += 1


def buffer_actor(capacity: int, released: int, *, cpus: float = 0.0) -> Any:
    """Start the buffer as a Ray actor; it answers many waiting calls at once."""
    import ray

    remote = ray.remote(num_cpus=cpus, max_concurrency=10_000, max_restarts=0)(SlotBuffer)
    return remote.remote(capacity, released)
