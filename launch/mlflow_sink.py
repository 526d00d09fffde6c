"""MLflow behind a bounded queue and a thread of its own: training neither waits for it nor fails with it.

The thread imports mlflow (seconds), opens the run, then sends what the queue holds. What does not fit into
the queue, or what the server refuses, is dropped from MLflow, counted and shown; `metrics.jsonl` has it, and
`funicular metrics sync` sends it later.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funicular.launch.addresses import public_uri
from funicular.launch.mlflow_run import MlflowRun, MlflowTarget, attempt_tags
from funicular.launch.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE_ITEMS = 2000
RECONNECT_S = 30.0
FLUSH_DEADLINE_S = 60.0
_POLL_S = 0.5
_SILENCE_S = 60.0  # a server that is down is reported once a minute, not once a step


@dataclass(frozen=True, slots=True)
class Table:
    """A file with a table of completions."""

    path: Path


@dataclass(frozen=True, slots=True)
class Traces:
    """A file with what traces are made of."""

    path: Path


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags of the run."""

    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Models:
    """Whatever models stand in the run folder now are to be registered."""


Item = Mapping[str, Any] | Table | Traces | Tags | Models
"""A record of metrics.jsonl, or one of the above."""


class MlflowSink:
    """Sends to one MLflow run. No method but `close` waits; none raises."""

    def __init__(
        self,
        target: MlflowTarget,
        folder: RunFolder,
        *,
        attempt: int,
        resumed_from_step: int | None,
        say: Callable[[str], None],
        open_run: Callable[[MlflowTarget, RunFolder], MlflowRun] = MlflowRun,
        queue_items: int = QUEUE_ITEMS,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        """Start the thread.

        Args:
            say: told, from the thread, the link of the run and what went wrong.
            open_run: what opens the run; tests put a fake here.
            queue_items: how many items may wait.
            reconnect_s: seconds between tries to open the run.
        """
        self.dropped = 0
        """Items that MLflow does not have."""
        self.link: str | None = None
        """What to open in a browser; None until the run is open."""
        self._target = target
        self._folder = folder
        self._attempt = attempt
        self._resumed_from_step = resumed_from_step
        self._say = say
        self._open_run = open_run
        self._reconnect_s = reconnect_s
        self._queue: queue.Queue[Item] = queue.Queue(maxsize=queue_items)
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._last_complaint = float("-inf")
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item, or drop and count it if the queue is full."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._drop(1, "the queue is full")

    def begin_attempt(self, attempt: int, resumed_from_step: int | None) -> None:
        """Record that the run went back to a snapshot."""
        self.put(Tags(attempt_tags(attempt, resumed_from_step)))

    def close(self, status: str, deadline_s: float = FLUSH_DEADLINE_S) -> None:
        """End the MLflow run; what is not sent within `deadline_s` is dropped and counted."""
        self._status = status
        self._closing.set()
        self._thread.join(deadline_s)
        left = self._queue.qsize()
        if left or self._thread.is_alive():
            self._last_complaint = float("-inf")
            self._drop(left, f"not sent within {deadline_s:.0f} s of the run's end")

    def _work(self) -> None:
        run = self._connect()
        if run is None:
            return
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                first = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._send(run, [first, *self._waiting()])
        try:
            run.finish(self._status)
        except Exception as error:
            self._drop(0, f"the run could not be ended: {_short(error)}")

    def _connect(self) -> MlflowRun | None:
        """The open run; None when the end of training comes first."""
        while True:
            try:
                run = self._open_run(self._target, self._folder)
                run.begin(self._attempt)
                run.tag(attempt_tags(self._attempt, self._resumed_from_step))
            except Exception as error:  # whatever MLflow, its store or the network raises: training goes on
                self._complain(f"cannot be opened at {public_uri(self._target.uri)}: {_short(error)}")
                if self._closing.wait(self._reconnect_s):
                    return None
                continue
            self.link = run.link
            self._say(f"MLflow: {self.link}")
            return run

    def _waiting(self) -> list[Item]:
        """What else is queued now: after a slow start many records go in one call."""
        items: list[Item] = []
        while True:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                return items

    def _send(self, run: MlflowRun, items: Sequence[Item]) -> None:
        records = [item for item in items if isinstance(item, Mapping)]
        if records:
            self._try(len(records), lambda: run.log(records))
        for item in items:
            if not isinstance(item, Mapping):
                self._try(1, partial(_send_one, run, item))

    def _try(self, items: int, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:  # whatever MLflow, its store or the network raises: training goes on
            self._drop(items, _short(error))

    def _drop(self, items: int, why: str) -> None:
        self.dropped += items
        self._complain(f"{why}; {self.dropped} dropped so far")

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._last_complaint < _SILENCE_S:
            return
        self._last_complaint = now
        self._say(
            f"MLflow {what}. Training goes on, metrics.jsonl has everything; "
            f"later: funicular metrics sync {self._folder.path}"
        )


def _short(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {public_uri(first)[:300]}"  # MLflow's own errors name the URI with its password


def _send_one(run: MlflowRun, item: Table | Traces | Tags | Models) -> None:
    match item:
        case Table(path):
            run.log_table(path)
        case Traces(path):
            run.log_traces(path)
        case Tags(tags):
            run.tag(tags)
        case Models():
            run.register_models()
