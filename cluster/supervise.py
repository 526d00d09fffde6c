"""How many deaths a run survives, and the record of them."""

from __future__ import annotations

from dataclasses import dataclass, field


class RestartBudgetSpent(RuntimeError):
    """More parts died than `cluster.max_restarts` allows."""


@dataclass
class RestartBudget:
    """Counts restarts of all parts together, and stops a run that only ever restarts."""

    limit: int
    deaths: list[str] = field(default_factory=list)

    def spend(self, part: str, reason: str) -> None:
        """Account one restart of `part`.

        Raises:
            RestartBudgetSpent: the budget was empty; lists every death so far.
        """
        self.deaths.append(f"{part}: {reason}")
        if len(self.deaths) > self.limit:
            listing = "\n  ".join(self.deaths)
            raise RestartBudgetSpent(f"{len(self.deaths)} restarts, cluster.max_restarts={self.limit}:\n  {listing}")
