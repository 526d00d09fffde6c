"""A run: its parts and where it stands. `build.py` makes one, `loop.py` drives it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from funicular.actors.errors import RunStopped
from funicular.actors.protocols import Buffering, Generating, Learning, Publishing, Scoring, Teaching, Watching
from funicular.actors.readings import Reading
from funicular.cluster.supervise import RestartBudget
from funicular.launch.accounts import Accounts
from funicular.launch.checkpoints import Checkpoints, Snapshot
from funicular.launch.config import Config
from funicular.launch.hack_signals import HackSignals
from funicular.rewards.types import Task

if TYPE_CHECKING:
    from funicular.actors.model_shape import ModelShape
    from funicular.actors.types import EmptySlot, ScoredGroup
    from funicular.launch.tracking import Tracker

STALL_CHECK_S = 20.0


@dataclass
class Run:
    """Everything the loop works with."""

    config: Config
    accounts: Accounts
    generators: Generating
    scorers: Scoring
    learners: Learning
    weights: Publishing
    checkpoints: Checkpoints
    tracker: Tracker
    budget: RestartBudget
    held_out: Sequence[Task]
    """Tasks of every evaluation."""
    make_buffer: Callable[[int], Buffering]
    """A buffer whose first slot is the given one; each attempt has its own."""
    teachers: Teaching | None = None
    """None: no teacher scores what the student samples."""
    given: Generating | None = None
    """Gives training tasks their completions; None: generators sample them."""
    nodes: Watching | None = None
    """None: the recipe wants no metrics of nodes."""
    snapshot: Snapshot | None = None
    """What the next attempt begins from; None: the initial model."""
    model_shape: ModelShape | None = None
    """What the plan of this run's memory counts with; None: there is no such plan."""
    buffer: Buffering = field(init=False)
    hack_signals: HackSignals = field(default_factory=HackSignals)
    step: int = 0
    """Training steps done."""
    first_evaluation: Mapping[str, float] | None = None
    last_evaluation: Mapping[str, float] | None = None
    evaluated_step: int | None = None
    """Of the last evaluation."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set on SIGTERM: finish the step under way, save, end."""

    async def next_batch(self) -> tuple[ScoredGroup | EmptySlot, ...] | None:
        """The next training batch; None when the run is asked to stop.

        Raises:
            RunStopped: nothing at all happened for `cluster.stall_deadline_s`; says which slots are awaited.
        """
        began = time.monotonic()
        taking = asyncio.create_task(self.buffer.take())
        stopping = asyncio.create_task(self.stop.wait())
        try:
            while True:
                await asyncio.wait({taking, stopping}, timeout=STALL_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    return None
                if taking.done():
                    return taking.result()
                self._check_stall(began)
        finally:
            taking.cancel()
            stopping.cancel()

    async def save(self) -> float:
        """Begin a checkpoint of the state between two steps; the seconds that training waited for it."""
        began = time.monotonic()
        self.accounts.ledger.bring_to_disk()  # a checkpoint's copy must never know more than the ledger itself
        await self.checkpoints.save(
            self.step,
            self.accounts.position(self.buffer.released),
            self.first_evaluation,
            self.learners.save,
            ledger=self.accounts.ledger.path,
            evaluation=self.last_evaluation if self.evaluated_step == self.step else None,
        )
        return time.monotonic() - began

    def evaluated(self, metrics: Mapping[str, float] | None) -> None:
        """Note what an evaluation at this step found."""
        self.last_evaluation = metrics
        self.evaluated_step = self.step

    def report_checkpoints(self) -> None:
        """Log what has ended in the background; raises RunStopped if a checkpoint could not be completed."""
        sentences, metrics = self.checkpoints.news()
        for sentence in sentences:
            self.tracker.event(sentence)
        if metrics:
            self.tracker.log(self.step, metrics)

    def new_buffer(self, released: int) -> None:
        """Begin with an empty buffer, in place of the last attempt's."""
        if "buffer" in self.__dict__:
            self.buffer.close()
        self.buffer = self.make_buffer(released)

    async def now(self) -> list[Reading]:
        """What the run and its parts do now, for whoever watches between two steps."""
        ledger = self.accounts.ledger
        event_at = time.time() - (time.monotonic() - ledger.last_event_time)
        readings = [
            Reading(name="now/step", value=self.step),
            Reading(name="now/version", value=self.weights.version, labels={"part": "weight-sync"}),
            Reading(name="now/groups_open", value=self.accounts.open_groups),
            Reading(name="now/ledger_bytes", value=ledger.written, labels={"state": "written"}),
            Reading(name="now/ledger_bytes", value=ledger.on_disk, labels={"state": "on_disk"}),
            Reading(name="now/ledger_event_at_s", value=event_at),
            Reading(name="now/restarts_left", value=max(0, self.budget.limit - len(self.budget.deaths))),
        ]
        buffer = self.__dict__.get("buffer")  # there is none before the first attempt
        parts = [part for part in (self.generators, self.given, self.teachers, buffer, self.scorers) if part]
        for part in {id(part): part for part in parts}.values():  # a run that samples nothing has one for two
            readings += await part.now()
        return readings

    def _check_stall(self, waiting_since: float) -> None:
        idle_s = time.monotonic() - max(self.accounts.ledger.last_event_time, waiting_since)
        if idle_s > self.config.cluster.stall_deadline_s:
            raise RunStopped(
                f"no event in the ledger for {idle_s:.0f} s (cluster.stall_deadline_s); "
                f"step {self.step + 1} waits for slots {self.buffer.waiting_slots()}"
            )
