"""What a sandbox has done so far: counters that only grow, so that two readings can be subtracted."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from funicular.rewards.sandbox.types import JobReport, Judgement, Level, Outcome

_WAITS_KEPT = 4096
"""Queue waits that maximum and 95th percentile are taken over, at most."""
_RATE_OVER = 256
"""Completed submissions that the recent rate is taken over, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """One reading. Sums since the sandbox began, unless the field says otherwise."""

    level: Level | None = None
    """None in a sum over sandboxes that differ."""
    slots: int = 0
    """Lanes: submissions that can be judged at the same time."""
    slot_seconds: float = 0.0
    """Slots times the seconds they have existed; with `busy_s` it gives the idle fraction."""
    busy_s: float = 0.0
    """Seconds that slots spent on submissions, over all slots."""
    submissions: int = 0
    """Judged, whatever the outcome."""
    jobs: int = 0
    """Processes forked for them."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Submissions by outcome (`Outcome`)."""
    cpu_s: float = 0.0
    """Of judged code."""
    wall_s: float = 0.0
    queue_wait_s: float = 0.0
    """Sum over submissions, dropped ones excluded."""
    queue_wait_max_s: float = 0.0
    """Since the last reading, over the newest 4,096."""
    queue_wait_p95_s: float = 0.0
    """As the maximum."""
    waiting: int = 0
    """Submissions in the queue now."""
    busy: int = 0
    """Slots that work on a submission now."""
    restarts: int = 0
    """Slots replaced because they died, fell silent or could not be started."""
    recycled: int = 0
    """Slots replaced because they were worn: too many jobs, or too much memory."""
    retried: int = 0
    """Submissions judged again on another slot, because the first was lost or gave no verdict."""
    infra_errors: int = 0
    """Submissions without a judgement, dropped ones included."""
    dropped: int = 0
    """Submissions that left the queue unjudged: their deadline passed, or nobody waits for them any more."""
    refused: int = 0
    """Times that a batch was refused because the queue was full."""

    def since(self, earlier: SandboxStats) -> SandboxStats:
        """What happened between an earlier reading of the same sandbox and this one."""
        return self._combine(earlier, -1)

    def plus(self, other: SandboxStats) -> SandboxStats:
        """Both sandboxes together; maxima and percentiles are the larger of the two."""
        return self._combine(other, 1)

    def _combine(self, other: SandboxStats, sign: int) -> SandboxStats:
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in _SUMS}
        outcomes = Counter(self.outcomes)
        for outcome, count in other.outcomes.items():
            outcomes[outcome] += sign * count
        sums["outcomes"] = {outcome: count for outcome, count in outcomes.items() if count}
        if sign < 0:
            unsummed = {name: getattr(self, name) for name in (*_NOW, *_PEAKS)}
        else:
            unsummed = {name: getattr(self, name) + getattr(other, name) for name in _NOW}
            unsummed |= {name: max(getattr(self, name), getattr(other, name)) for name in _PEAKS}
        return SandboxStats(level=self.level if self.level is other.level else None, **sums, **unsummed)


_SUMS = (
    "slot_seconds",
    "busy_s",
    "submissions",
    "jobs",
    "cpu_s",
    "wall_s",
    "queue_wait_s",
    "restarts",
    "recycled",
    "retried",
    "infra_errors",
    "dropped",
    "refused",
)
_NOW = ("slots", "waiting", "busy")
_PEAKS = ("queue_wait_max_s", "queue_wait_p95_s")


class Recorder:
    """Collects what lanes and queue report; safe to use from several threads."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._sums: Counter[str] = Counter()
        self._seconds = dict.fromkeys(("busy_s", "cpu_s", "wall_s", "queue_wait_s"), 0.0)
        self._outcomes: Counter[str] = Counter()
        self._waits: deque[float] = deque(maxlen=_WAITS_KEPT)
        self._completed: deque[float] = deque(maxlen=_RATE_OVER)
        self._busy_since: dict[int, float] = {}

    def count(self, name: str) -> None:
        """Add one to restarts, recycled, retried, dropped or refused."""
        with self._lock:
            self._sums[name] += 1
            if name == "dropped":
                self._sums["infra_errors"] += 1

    def began(self, lane: int) -> None:
        """A lane begins to work on a submission."""
        with self._lock:
            self._busy_since[lane] = time.monotonic()

    def ended(self, lane: int, jobs: int) -> None:
        """A lane is done with a submission, judged or not."""
        with self._lock:
            now = time.monotonic()
            self._seconds["busy_s"] += now - self._busy_since.pop(lane, now)
            self._sums["jobs"] += jobs

    def judged(self, result: Judgement | JobReport, queue_s: float) -> None:
        """A submission has its result."""
        with self._lock:
            self._sums["submissions"] += 1
            self._outcomes[result.outcome.value] += 1
            self._sums["infra_errors"] += result.outcome is Outcome.INFRA_ERROR
            self._seconds["cpu_s"] += result.cpu_s
            self._seconds["wall_s"] += result.wall_s
            self._seconds["queue_wait_s"] += queue_s
            self._waits.append(queue_s)
            self._completed.append(time.monotonic())

    def rate(self) -> float:
        """Submissions completed per second lately; 0.0 when none was."""
        with self._lock:
            if not self._completed:
                return 0.0
            return len(self._completed) / max(time.monotonic() - self._completed[0], 0.05)

    def read(self, *, level: Level, waiting: int, new_window: bool = True) -> SandboxStats:
        """The counters now; starts a new window for maximum and percentile, unless told not to."""
        with self._lock:
            now = time.monotonic()
            waits = sorted(self._waits)
            if new_window:
                self._waits.clear()
            return SandboxStats(
                level=level,
                slots=self._slots,
                slot_seconds=self._slots * (now - self._began),
                busy_s=self._seconds["busy_s"] + sum(now - since for since in self._busy_since.values()),
                cpu_s=self._seconds["cpu_s"],
                wall_s=self._seconds["wall_s"],
                queue_wait_s=self._seconds["queue_wait_s"],
                outcomes=dict(self._outcomes),
                queue_wait_max_s=waits[-1] if waits else 0.0,
                queue_wait_p95_s=waits[int(0.95 * (len(waits) - 1))] if waits else 0.0,
                waiting=waiting,
                busy=len(self._busy_since),
                **self._sums,
            )
