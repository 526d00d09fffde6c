"""The endless order in which training tasks are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence

from funicular.rewards.types import Task


class TaskIterator:
    """Endless: each epoch is a new shuffle. The order depends on tasks, seed and position only.

    With `balance_column`, its values take turns, each with its own shuffle and epochs: draw k is of value k
    mod n.

    Args:
        position: tasks drawn before; the next one is what an iterator that drew them would give.
    """

    def __init__(
        self, tasks: Sequence[Task], seed: int, *, position: int = 0, balance_column: str | None = None
    ) -> None:
        if not tasks:
            raise ValueError("no tasks to draw from")
        if position < 0:
            raise ValueError(f"position={position}, expected 0 or more")
        self.position = position
        """Tasks drawn so far. May be set, to go back to a checkpoint."""
        self._tasks = tasks
        self._seed = seed
        by_value: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            value = "" if balance_column is None else str(task.columns[balance_column])
            by_value.setdefault(value, []).append(index)
        self._pools = sorted(by_value.items())
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def epoch(self) -> int:
        """position // number of tasks."""
        return self.position // len(self._tasks)

    def next(self) -> Task:
        """Draw the next task."""
        turn, pool = divmod(self.position, len(self._pools))
        value, indexes = self._pools[pool]
        epoch, place = divmod(turn, len(indexes))
        if self._orders.get(value, (-1, []))[0] != epoch:
            order = list(indexes)
            random.Random(f"{self._seed}/{epoch}/{value}").shuffle(order)
            self._orders[value] = (epoch, order)
        self.position += 1
        return self._tasks[self._orders[value][1][place]]
