"""What waits for a slot: bounded, fair between runs, and nothing waits beyond its deadline.

Runs take turns, each first come first served. A submission that lost its slot goes to the front, to another lane.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

IDLE_CHECK_S = 5.0
"""Seconds between two looks of an idle lane, should it have missed the word that there is work."""


class SandboxBusy(RuntimeError):
    """The queue is full; worth another try after `retry_after_s` seconds."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} submissions wait already; try again in {retry_after_s:.2f} s")
        self.waiting = waiting
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[SandboxBusy], tuple[int, float]]:
        return (SandboxBusy, (self.waiting, self.retry_after_s))


@dataclass(eq=False, slots=True, kw_only=True)
class Submission:
    """One piece of work for a lane, and where its result will be."""

    work: Callable[[Any, float], Any]
    """Called with the lane's slots and the seconds that are left."""
    infra_error: Callable[[str], Any]
    """Makes the result of a submission that could not be judged, from the reason."""
    run: str
    """Name of the run that asks; runs take turns."""
    deadline: float
    """By `time.monotonic()`."""
    result: Future[Any] = field(default_factory=Future)
    """Cancelled: nobody waits for it any more."""
    queued_at: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """In the queue, all its stays together."""
    lost_on: int | None = None
    """Number of the lane that lost a slot over it, or had no verdict: another takes it, if there is one."""


class FairQueue:
    """Submissions of several runs, taken by lanes.

    Args:
        capacity: submissions that may wait. A batch is let in whole as long as fewer do.
        lanes: how many lanes take from it.
        dropped: told of each submission that leaves unjudged, before its result is set.
    """

    def __init__(self, capacity: int, lanes: int, dropped: Callable[[Submission], None]) -> None:
        self._capacity = capacity
        self._lanes = lanes
        self._dropped = dropped
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._runs: dict[str, deque[Submission]] = {}
        """In order of turns: the first is next. None is empty."""
        self._again: deque[Submission] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Submissions in the queue."""
        with self._work:
            return self._count()

    def put(self, batch: Sequence[Submission], *, wait_until: float = 0.0) -> bool:
        """Let a batch in, waiting for room until a moment of `time.monotonic()`; false if there was none.

        Raises:
            RuntimeError: the queue is closed.
        """
        with self._room:
            while self._full() and not self._closed:
                left = wait_until - time.monotonic()
                if left <= 0:
                    return False
                self._room.wait(left)
            if self._closed:
                raise RuntimeError("the sandbox is closed")
            for submission in batch:
                submission.queued_at = time.monotonic()
                self._runs.setdefault(submission.run, deque()).append(submission)
            self._work.notify(len(batch))
            return True

    def put_back(self, submission: Submission, lost_on: int) -> None:
        """Once more, before all others, on another lane than `lost_on` if there is one."""
        submission.lost_on = lost_on
        submission.queued_at = time.monotonic()
        with self._work:
            if not self._closed:
                self._again.append(submission)
                self._work.notify_all()  # not one, which may be the very lane that must not take it
                return
        self._drop(submission, "the sandbox was closed")

    def take(self, lane: int) -> Submission | None:
        """The next submission for a lane, when there is one; None when the queue is closed."""
        while True:
            with self._work:
                while (submission := self._next(lane)) is None and not self._closed:
                    self._work.wait(IDLE_CHECK_S)
                self._room.notify_all()
            if submission is None or self._starts(submission):
                return submission

    def close(self) -> None:
        """Drop everything that waits; `take` returns None from now on."""
        with self._work:
            self._closed = True
            left = [*self._again, *(submission for waiting in self._runs.values() for submission in waiting)]
            self._again.clear()
            self._runs.clear()
            self._work.notify_all()
            self._room.notify_all()
        for submission in left:
            self._drop(submission, "the sandbox was closed")

    def _count(self) -> int:
        return len(self._again) + sum(map(len, self._runs.values()))

    def _full(self) -> bool:
        if self._count() < self._capacity:
            return False
        for run, waiting in list(self._runs.items()):  # what nobody waits for any more takes no room
            gone = [submission for submission in waiting if submission.result.cancelled()]
            for submission in gone:
                waiting.remove(submission)
                self._dropped(submission)
            if not waiting:
                del self._runs[run]
        return self._count() >= self._capacity

    def _next(self, lane: int) -> Submission | None:
        for submission in self._again:
            if submission.lost_on != lane or self._lanes == 1:
                self._again.remove(submission)
                return submission
        if not self._runs:
            return None
        run = next(iter(self._runs))
        waiting = self._runs.pop(run)
        submission = waiting.popleft()
        if waiting:
            self._runs[run] = waiting  # to the end: the other runs' turn
        return submission

    def _starts(self, submission: Submission) -> bool:
        """Whether it is still to be judged; it is dropped otherwise."""
        now = time.monotonic()
        submission.waited_s += now - submission.queued_at
        if now >= submission.deadline:
            self._drop(submission, "deadline passed in the queue")
            return False
        if submission.lost_on is None and not submission.result.set_running_or_notify_cancel():
            self._dropped(submission)
            return False
        return True

    def _drop(self, submission: Submission, reason: str) -> None:
        self._dropped(submission)
        if submission.lost_on is not None or submission.result.set_running_or_notify_cancel():
            submission.result.set_result(submission.infra_error(reason))
