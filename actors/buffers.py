"""The loop's side of the rollout buffer: survives the death of the buffer's actor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from funicular.actors.buffer import Filling, buffer_actor
from funicular.actors.readings import Reading
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget


class RolloutBuffer:
    """Reserves, fills, takes and releases slots in order, on whichever buffer actor is alive.

    It holds every unreleased filling itself, so that a new actor can be given what the dead one had.
    """

    def __init__(
        self,
        *,
        max_staleness: int,
        groups_per_step: int,
        budget: RestartBudget,
        released: int = 0,
        deadline_s: float = 120.0,
        make_actor: Callable[[int, int], Any] = buffer_actor,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        self.groups_per_step = groups_per_step
        self.capacity = (max_staleness + 1) * groups_per_step
        self.released = released
        self._next_slot = released
        self._admitted = released
        """Slots below may be worked on: the buffer said so."""
        self._held: dict[int, Filling] = {}
        self._filled_at: dict[int, float] = {}
        self._taken: dict[str, float] = {}
        self._in_training = False
        """A batch was taken and is not released."""
        self._closed = False
        self._budget = budget
        self._deadline_s = deadline_s
        self._make_actor = make_actor
        self._kill_actor = kill_actor
        self._actor = make_actor(self.capacity, released)

    async def reserve(self) -> int:
        """The next slot, once it may be worked on. One caller at a time: slots are admitted in order."""
        slot = self._next_slot
        if slot >= self._admitted:
            self._admitted = await self._ask(lambda actor: actor.admit.remote(slot), deadline_s=None)
        self._next_slot = slot + 1
        return slot

    async def fill(self, filling: Filling) -> None:
        """Put a group, or word of its failure, into its slot."""
        self._held[filling.slot] = filling
        self._filled_at[filling.slot] = time.monotonic()
        await self._put(filling)

    async def take(self) -> tuple[Filling, ...]:
        """The next training batch: `groups_per_step` fillings in slot order. They stay held until released."""
        first = self.released
        await self._ask(lambda actor: actor.take.remote(first, self.groups_per_step), deadline_s=None)
        self._in_training = True
        slots = range(first, first + self.groups_per_step)
        whole_at = max(self._filled_at[slot] for slot in slots)
        self._taken = {
            "async/head_wait_s": statistics.fmean(whole_at - self._filled_at[slot] for slot in slots),
            "async/filled_ahead": float(sum(slot >= slots.stop for slot in self._held)),
        }
        return tuple(self._held[slot] for slot in slots)

    def metrics(self) -> dict[str, float]:
        """How long slots of the batch taken last waited for its slowest, and how many lay filled behind it."""
        return self._taken

    async def empty(self, slot: int) -> None:
        """Forget a slot's content, to be filled again."""
        self._in_training = False  # the batch will be taken again, whole
        del self._held[slot], self._filled_at[slot]
        await self._ask(lambda actor: actor.empty.remote(slot), deadline_s=self._deadline_s)

    async def release(self) -> None:
        """Release the batch that was taken last: the weights that it made are committed."""
        self._in_training = False
        self.released += self.groups_per_step
        for slot in [slot for slot in self._held if slot < self.released]:
            del self._held[slot], self._filled_at[slot]
        upto = self.released
        await self._ask(lambda actor: actor.release.remote(upto), deadline_s=self._deadline_s)

    def waiting_slots(self) -> list[int]:
        """Reserved slots not filled yet, oldest first."""
        return [slot for slot in range(self.released, self._next_slot) if slot not in self._held]

    async def now(self) -> list[Reading]:
        """Slots by state, and whole batches that wait for the learner."""
        first = self.released + self.groups_per_step * self._in_training
        head = first
        while head in self._held:
            head += 1
        slots = {
            "in_training": first - self.released,
            "filled": sum(slot >= first for slot in self._held),
            "working": len(self.waiting_slots()),
        }
        slots["free"] = self.capacity - sum(slots.values())
        return [
            *(Reading(name="now/slots", value=count, labels={"state": state}) for state, count in slots.items()),
            Reading(name="now/batches_waiting", value=(head - first) // self.groups_per_step),
        ]

    async def _put(self, filling: Filling) -> None:
        await self._ask(lambda actor: actor.fill.remote(filling), deadline_s=self._deadline_s)

    def close(self) -> None:
        """Kill the actor; calls that still wait for it end with an error. Nothing may be asked after this."""
        self._closed = True
        self._kill_actor(self._actor)

    async def _ask(self, request: Callable[[Any], Awaitable[Any]], *, deadline_s: float | None) -> Any:
        """None: the call waits for other parts, and the loop's stall check watches it."""
        while True:
            actor = self._actor
            try:
                return await call(request(actor), deadline_s=deadline_s, what="the rollout buffer")
            except (RayActorError, DeadlineExceeded) as error:
                if self._closed:
                    raise
                await self._replace(actor, str(error).splitlines()[0])

    async def _replace(self, dead: Any, reason: str) -> None:
        if self._actor is not dead:  # another waiting call has replaced it already
            return
        self._budget.spend("buffer", reason)
        self._kill_actor(dead)
        self._actor = self._make_actor(self.capacity, self.released)
        for filling in list(self._held.values()):
            await self._put(filling)
