"""What became of the tests: the counts from which the judge decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MAX_FAILURE = 500


@dataclass(slots=True)
class Tally:
    """Counts of one test run. Passed means run == collected > 0 and nothing failed or was skipped."""

    run: int = 0
    failed: int = 0
    skipped: int = 0
    collected: int = 0
    first_failure: str = ""

    def fail(self, where: str, why: BaseException | str) -> None:
        """Count a failure; the first one is kept for people."""
        self.failed += 1
        if not self.first_failure:
            self.first_failure = f"{where}: {_describe(why)}"[:_MAX_FAILURE]

    def verdict(self) -> dict[str, Any]:
        """As it crosses to the judge."""
        return {
            "run": self.run,
            "failed": self.failed,
            "skipped": self.skipped,
            "collected": self.collected,
            "first_failure": self.first_failure,
        }


def _describe(why: BaseException | str) -> str:
    if isinstance(why, str):
        return why
    message = str(why)
    return f"{type(why).__name__}: {message}" if message else type(why).__name__
