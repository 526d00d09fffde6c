"""One node's sandbox as a service: scorers send it batches of programs, with the tests by reference.

A plain class; `sandbox_pool_actor` makes it a Ray actor. If its process dies, so do its slots; Ray starts it again
under the same handle and repeats the calls it had, which is safe because judging draws nothing at random.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.cores import usable_cores
from funicular.rewards.sandbox.queue import Submission
from funicular.rewards.sandbox.sandbox import Sandbox
from funicular.rewards.sandbox.slot_process import missing_tool
from funicular.rewards.sandbox.stats import SandboxStats
from funicular.rewards.sandbox.types import Judgement, Level, Program, TestSet

CALLS_AT_ONCE = 64
"""Batches, of as many scorers, that a pool works on; more wait in Ray."""
WATCH = "watch"
"""Ray's concurrency group of `start` and `stats`, so that they never wait for batches."""
PULSE = "pulse"
"""Ray's concurrency group of `pulse` and `now`: the others may wait for slots that start."""
TASK_RETRIES = 5
"""How often Ray repeats a call whose pool died meanwhile."""
CACHED_TESTS_MIB = 256
"""Test sets that a pool keeps, as pickles."""
FETCH_S = 60.0
"""Seconds for a test set to arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTests:
    """A test set on its way to a pool: small ones inside, large ones by reference."""

    key: str
    """Hash of the pickle."""
    size: int
    """Bytes of the pickle."""
    pickled: bytes | None = None
    """From the scorer, which made it from the data set: nothing that judged code can touch."""
    reference: Any = None
    """ray.ObjectRef of the pickle. Inside a record, so that Ray hands on the reference and not its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """What a pool is."""

    level: Level
    why_not_higher: str
    """Empty at L3."""
    slots: int
    stats: SandboxStats
    life: str
    """Differs after a restart, when `stats` begins from 0 again."""


class SandboxPool:
    """Judges batches in the slots of its node. Its methods may be called from several threads.

    Args:
        slots: this pool's share of its node's. With `sandbox.slots: 0` they are never more than the cores that this
            process may use: a Ray of our own counts as many CPUs as the recipe asks for.
        fetch: reads a `PackedTests.reference`.
    """

    def __init__(self, config: SandboxConfig, slots: int, fetch: Callable[[Any], bytes] | None = None) -> None:
        self._config = replace(config, slots=slots if config.slots else min(slots, usable_cores()))
        self._fetch = fetch or _fetch
        self._life = f"{os.getpid()} {time.time_ns()}"
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._tests: OrderedDict[str, tuple[TestSet, int]] = OrderedDict()
        self._calls: dict[str, list[Submission]] = {}

    def start(self, language: str) -> PoolReport:
        """Start the slots, unless they run: not done by `__init__`, whose exceptions Ray reports as a dead actor.

        Args:
            language: of the programs that it will judge.

        Raises:
            IsolationUnavailable: this node does not reach the level that the recipe requires.
            ValueError: this node has no interpreter or compiler of the language.
        """
        self._open()
        if (missing := missing_tool(language)) is not None:
            raise ValueError(missing)
        return self.report()

    def judge(
        self, programs: Sequence[Program], tests: PackedTests, *, client: str, run: str, deadline_s: float
    ) -> list[Judgement]:
        """The verdict on each program, in order.

        Args:
            client: who asks. It asks for one batch at a time: what is left of an earlier one is dropped, because
                the client has died over it, or has given it up.
            run: name of the run; runs share the slots fairly.
            deadline_s: seconds within which all must be judged; the rest is `Outcome.INFRA_ERROR`.

        Raises:
            SandboxBusy: the queue is full; says when to ask again.
            IsolationUnavailable: the pool was restarted, and its node does not reach the level any more.
        """
        sandbox = self._open()
        with self._lock:
            sandbox.withdraw(self._calls.pop(client, []))
        submissions = sandbox.offer(programs, self._unpack(tests), run=run, deadline_s=deadline_s)
        with self._lock:
            self._calls[client] = submissions
        try:
            return sandbox.collect(submissions)
        finally:
            with self._lock:
                if self._calls.get(client) is submissions:
                    del self._calls[client]

    def report(self) -> PoolReport:
        """Level and counters; begins a new window for the longest waits."""
        return self._report(self._open(), new_window=True)

    def now(self) -> PoolReport | None:
        """The same at once, whatever else is under way, and without a new window; None while its slots start."""
        return self._report(self._sandbox, new_window=False) if self._sandbox else None

    def pulse(self) -> None:
        """Answer at once, whatever else is under way: the process runs."""

    def _report(self, sandbox: Sandbox, *, new_window: bool) -> PoolReport:
        stats = sandbox.stats(new_window=new_window)
        return PoolReport(
            level=sandbox.level,
            why_not_higher=sandbox.why_not_higher,
            slots=stats.slots,
            stats=stats,
            life=self._life,
        )

    def _open(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox(self._config)
            return self._sandbox

    def _unpack(self, tests: PackedTests) -> TestSet:
        with self._lock:
            if tests.key in self._tests:
                self._tests.move_to_end(tests.key)
                return self._tests[tests.key][0]
        unpacked: TestSet = pickle.loads(tests.pickled if tests.pickled is not None else self._fetch(tests.reference))
        with self._lock:
            self._tests[tests.key] = (unpacked, tests.size)
            while sum(size for _, size in self._tests.values()) > CACHED_TESTS_MIB << 20:
                self._tests.popitem(last=False)
        return unpacked


def sandbox_pool_actor(node_id: str, max_restarts: int) -> Any:
    """The Ray actor class of a pool on one node.

    It reserves no CPU. Its work is a process tree that Ray does not count, and comes in bursts between generation
    and learning; on a laptop all parts share two cores. Where a node's cores are precious, `sandbox.slots` limits it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return ray.remote(concurrency_groups={WATCH: 2, PULSE: 1})(SandboxPool).options(
        num_cpus=0,
        max_restarts=max_restarts,
        max_task_retries=TASK_RETRIES,
        max_concurrency=CALLS_AT_ONCE,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
    )


def _fetch(reference: Any) -> bytes:
    import ray

    return ray.get(reference, timeout=FETCH_S)
