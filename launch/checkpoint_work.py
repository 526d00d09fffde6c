"""What of saving goes on while training does: on one thread, one checkpoint at a time, with a deadline."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from funicular.actors.errors import RunStopped
from funicular.cluster.calls import DeadlineExceeded
from funicular.launch.background import in_background, wait_async

GRACE_S = 60.0
"""Beyond the deadline, for a try that began before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnderWay:
    name: str
    began: float
    sealed: Future[None]
    done: Future[None]


class CheckpointWork:
    """Seals a checkpoint, which makes it complete in the run folder, then does what comes after.

    Args:
        deadline_s: seconds for both together.
        where: for messages: what to look at when it hangs or fails.
    """

    def __init__(self, deadline_s: float, where: str) -> None:
        self._deadline_s = deadline_s
        self._where = where
        self._under_way: _UnderWay | None = None
        self._sentences: deque[str] = deque()
        self._seconds: deque[float] = deque()

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._under_way is not None and not self._under_way.done.done()

    def begin(self, name: str, seal: Callable[[], None], then: Callable[[float], None]) -> None:
        """Begin; nothing may be under way.

        Args:
            seal: what it raises stops the run.
            then: is given the time.monotonic() after which it should give up; what it raises stops the run too.
        """
        began = time.monotonic()
        sealed: Future[None] = Future()

        def work() -> None:
            try:
                seal()
            except BaseException as error:
                sealed.set_exception(error)
                raise
            sealed.set_result(None)
            then(began + self._deadline_s)
            self._seconds.append(time.monotonic() - began)

        self._under_way = _UnderWay(name=name, began=began, sealed=sealed, done=in_background(work, name))

    def say(self, sentence: str) -> None:
        """Add a sentence to the news. From any thread."""
        self._sentences.append(sentence)

    async def sealed(self) -> None:
        """Wait until what is under way is complete in the run folder.

        Raises:
            RunStopped: it cannot be, or it takes longer than the deadline.
        """
        if self._under_way:
            await self._wait(self._under_way, self._under_way.sealed)

    async def settle(self) -> None:
        """Wait for everything under way.

        Raises:
            RunStopped: it failed, or takes longer than the deadline.
        """
        if self._under_way:
            await self._wait(self._under_way, self._under_way.sealed)
            await self._wait(self._under_way, self._under_way.done)

    def news(self) -> tuple[list[str], float | None]:
        """Sentences since the last call, and the seconds of what has ended since.

        Raises:
            RunStopped: what was under way has failed.
        """
        if under_way := self._under_way:
            for future in (under_way.sealed, under_way.done):
                if future.done() and (error := future.exception()):
                    raise self._failed(under_way, error) from error
        sentences = [self._sentences.popleft() for _ in range(len(self._sentences))]
        seconds = [self._seconds.popleft() for _ in range(len(self._seconds))]
        return sentences, sum(seconds) if seconds else None

    async def _wait(self, under_way: _UnderWay, future: Future[None]) -> None:
        left = under_way.began + self._deadline_s + GRACE_S - time.monotonic()
        try:
            await wait_async(future, max(0.0, left), under_way.name)
        except DeadlineExceeded as error:
            raise RunStopped(
                f"{under_way.name} has not ended after {time.monotonic() - under_way.began:.0f} s "
                f"(checkpoint.deadline_s={self._deadline_s:g}); look at {self._where}, or allow more time"
            ) from error
        except Exception as error:
            raise self._failed(under_way, error) from error

    def _failed(self, under_way: _UnderWay, error: BaseException) -> RunStopped:
        return RunStopped(
            f"{under_way.name} could not be completed: {type(error).__name__}: {error}. Look at {self._where}; when it "
            "can be written to, start the run again: it continues from the checkpoint before"
        )
