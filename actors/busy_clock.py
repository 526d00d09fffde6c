"""How much of the time a group of parts had nothing to do."""

from __future__ import annotations

import time


class BusyClock:
    """Time during which members had work, over all members."""

    def __init__(self, members: int) -> None:
        self._members = members
        self._busy_members = 0
        self._since = self._started = time.monotonic()
        self._busy_s = 0.0

    def change(self, by: int) -> None:
        """So many members more begin to work, or fewer if negative."""
        now = time.monotonic()
        self._busy_s += self._busy_members * (now - self._since)
        self._since = now
        self._busy_members += by

    def idle_fraction(self) -> float:
        """Since the last call."""
        self.change(0)
        elapsed = max(self._since - self._started, 1e-9) * self._members
        fraction = 1.0 - self._busy_s / elapsed
        self._started, self._busy_s = self._since, 0.0
        return fraction
