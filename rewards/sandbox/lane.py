"""A lane: one thread that judges one submission at a time in slots of its own, and never ends by an error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress

from funicular.rewards.sandbox.lane_slots import LaneSlots
from funicular.rewards.sandbox.queue import FairQueue, Submission
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotLost, SlotProcess, SlotRole
from funicular.rewards.sandbox.stats import Recorder
from funicular.rewards.sandbox.types import Outcome

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Between two tries to start a slot that does not start; doubled each time."""


class Lane:
    """Takes submissions from the queue for as long as its candidate slot works.

    Its slots start in its own thread, so that those of all lanes start side by side.

    Args:
        start: starts a slot of a role for a lane.
        recycle_after: jobs after which a slot is replaced.
    """

    def __init__(
        self,
        number: int,
        queue: FairQueue,
        start: Callable[[SlotRole, int], SlotProcess],
        recorder: Recorder,
        recycle_after: int,
    ) -> None:
        self.number = number
        self.failure: Exception | None = None
        """Why its candidate slot could not be started the last time; None: it was."""
        self._queue = queue
        self._recorder = recorder
        self._slots = LaneSlots(number, start, recorder, recycle_after)
        self._tried = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"sandbox-lane-{number}", daemon=True)

    def start(self) -> None:
        """Begin; the candidate slot starts in the lane's own thread."""
        self._thread.start()

    def wait_first_try(self, deadline_s: float) -> bool:
        """Wait until the first try to start the candidate slot ended, well or not (`failure`); false if it did not."""
        return self._tried.wait(deadline_s)

    def stop(self) -> None:
        """Take nothing more, and make what runs end now; `join` waits for it."""
        self._stopped.set()
        self._slots.kill()

    def join(self, deadline_s: float) -> bool:
        """Wait until the lane has ended its slots; false if it has not."""
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while self._open():
            submission = self._queue.take(self.number)
            if submission is None:
                break
            try:
                self._judge(submission)
                self._slots.recycle_worn()
            except BaseException as error:  # also outside the judging nobody may wait in vain
                log.exception("lane %d: a fault outside the judging", self.number)
                _give_up(submission, error)
        self._slots.close()

    def _open(self) -> bool:
        """Have a working candidate slot, however long that takes; false when the lane is stopped."""
        pause_s = FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                self._slots.get(SlotRole.CANDIDATE)
            except Exception as error:  # of whatever kind: the lane tries again
                self.failure = error
                self._tried.set()
                self._recorder.count("restarts")
                log.warning("lane %d: no slot: %s; next try in %.1f s", self.number, error, pause_s)
                self._stopped.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self.failure = None
                self._tried.set()
                return not self._stopped.is_set()  # the slot may have started after `stop` killed the others
        return False

    def _judge(self, submission: Submission) -> None:
        self._recorder.began(self.number)
        jobs = self._slots.jobs
        again, failure = False, ""
        try:
            result = submission.work(self._slots, submission.deadline - time.monotonic())
            if result.outcome is Outcome.INFRA_ERROR:
                again = submission.lost_on is None and time.monotonic() < submission.deadline
        except (SlotLost, SlotFailed) as error:
            again, failure = submission.lost_on is None, f"{type(error).__name__}: {error}"
            log.warning("lane %d: %s", self.number, failure)
        except BaseException as error:  # a fault of ours: it costs this submission, and never the lane
            failure = f"{type(error).__name__}: {error}"
            log.exception("lane %d: judging failed", self.number)
        if failure:
            self._slots.discard()
        self._recorder.ended(self.number, self._slots.jobs - jobs)
        if again:
            self._recorder.count("retried")
            self._queue.put_back(submission, self.number)
            return
        if failure:
            result = submission.infra_error(failure)
        self._recorder.judged(result, submission.waited_s)
        submission.result.set_result(result)


def _give_up(submission: Submission, error: BaseException) -> None:
    with suppress(InvalidStateError):  # it has its result
        try:
            result = submission.infra_error(f"{type(error).__name__}: {error}")
        except BaseException as worse:
            submission.result.set_exception(worse)
        else:
            submission.result.set_result(result)
