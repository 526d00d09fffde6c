"""What a scorer judges code with: the pool of its own node first, then the others; none is asked in vain for long.

A pool that hangs costs one batch two pulses, where there is another pool to ask; where there is none, the batch's whole
deadline, since slots that start on a busy node take long too.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from funicular.actors.errors import first_line
from funicular.actors.sandbox_pool import PULSE, PackedTests
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.queue import SandboxBusy
from funicular.rewards.sandbox.sandbox import answer_s, not_judged
from funicular.rewards.sandbox.types import Judgement, Program, TestSet

log = logging.getLogger(__name__)

INLINE_BYTES = 64 << 10
"""Test sets up to this size travel inside the call."""
KEPT_MIB = 256
"""Large test sets that a scorer keeps in the object store, as pickles."""
RESTART_S = 60.0
"""Seconds more for a pool that has to be started again before it answers."""
PULSE_S = 30.0
"""A pool that has not answered for so long must say within as long again that it is alive, or the next is asked."""
ASKED_LAST_S = 600.0
"""Seconds for which a pool that did not answer in time is asked after all others. `SandboxPools` restarts one that
hangs meanwhile."""


class PoolsDead(RuntimeError):
    """No sandbox pool answers any more; says what became of each."""


class PoolJudge:
    """A `CodeJudge` over sandbox pools. Made by the driver, used in one scorer; one call at a time.

    Args:
        pools: node id and actor handle of each pool.
        client: the scorer's name, one of a kind in its run.
        run: the run's name.
        config: of the pools. Its `deadline_s` is for one batch, waiting in a pool's queue included.
    """

    def __init__(self, pools: Sequence[tuple[str, Any]], *, client: str, run: str, config: SandboxConfig) -> None:
        self._pools = list(pools)
        self._client = f"{run}/{client}"
        self._run = run
        self._deadline_s = config.deadline_s
        self._answer_s = answer_s(config) + RESTART_S
        self._turn = zlib.crc32(client.encode())  # scorers begin at different pools
        self._references: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._asked_last_until: dict[Any, float] = {}
        """By pool; those that are not in it have answered in time, as far as is known."""

    def use(self, pools: Sequence[tuple[str, Any]]) -> None:
        """Ask these from now on: nodes have joined or left."""
        self._pools = list(pools)
        there = {pool for _, pool in pools}
        self._asked_last_until = {pool: until for pool, until in self._asked_last_until.items() if pool in there}

    def __call__(self, programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
        """The verdict on each program, in order. What was not judged in time is `Outcome.INFRA_ERROR`.

        Raises:
            ValueError: such tests cannot be judged.
            PoolsDead: there is no pool left to ask, also after Ray's own restarts.
        """
        packed = self._pack(tests)
        deadline = time.monotonic() + self._deadline_s
        while time.monotonic() < deadline:
            pauses: list[float] = []
            deaths: list[str] = []
            order = self._in_order()
            for pool in order:
                if (left_s := deadline - time.monotonic()) <= 0:
                    break
                answer = self._ask(pool, list(programs), packed, left_s, is_last=pool is order[-1])
                if isinstance(answer, list):
                    return answer
                if isinstance(answer, SandboxBusy):
                    pauses.append(answer.retry_after_s)
                else:
                    deaths.append(answer)
            if not pauses:
                raise PoolsDead(f"no sandbox pool answers: {'; '.join(deaths)}")
            time.sleep(max(0.0, min(*pauses, deadline - time.monotonic())))
        reason = f"every sandbox pool was full for {self._deadline_s:.0f} s (sandbox.deadline_s)"
        return [not_judged(tests, reason) for _ in programs]

    def _ask(
        self, pool: Any, programs: list[Program], tests: PackedTests, left_s: float, *, is_last: bool
    ) -> list[Judgement] | SandboxBusy | str:
        """The verdicts, or that it is busy, or why it cannot be asked. The last pool is waited for, come what may."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        call = pool.judge.remote(programs, tests, client=self._client, run=self._run, deadline_s=left_s)
        end = time.monotonic() + left_s + self._answer_s
        try:
            while not is_last and not ray.wait([call], timeout=max(0.0, min(PULSE_S, end - time.monotonic())))[0]:
                if time.monotonic() >= end:
                    break
                if not _has_pulse(pool):
                    self._asked_last_until[pool] = time.monotonic() + ASKED_LAST_S
                    return f"no sign of life in {PULSE_S:.0f} s"
            return ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except RayTaskError as error:  # first: one whose cause is a timeout is a GetTimeoutError too
            if isinstance(error.cause, SandboxBusy):
                return error.cause
            if isinstance(error.cause, ValueError) and not isinstance(error.cause, IsolationUnavailable):
                raise error.cause from None
            return f"{type(error.cause).__name__}: {error.cause}"
        except GetTimeoutError:
            self._asked_last_until[pool] = time.monotonic() + ASKED_LAST_S
            return f"no answer {self._answer_s:.0f} s after the deadline"
        except RayError as error:  # it is dead, unschedulable, out of memory, or what it needs is lost
            return first_line(error)

    def _in_order(self) -> list[Any]:
        """Pools: the own node's first, each kind in turn, so that pools share the work; what timed out last."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        self._turn += 1
        near = [pool for node, pool in self._pools if node == own]
        far = [pool for node, pool in self._pools if node != own]
        order = [pools[(self._turn + i) % len(pools)] for pools in (near, far) for i in range(len(pools))]
        now = time.monotonic()
        return sorted(order, key=lambda pool: self._asked_last_until.get(pool, now) > now)

    def _pack(self, tests: TestSet) -> PackedTests:
        pickled = pickle.dumps(tests)
        key = hashlib.blake2b(pickled, digest_size=16).hexdigest()
        if len(pickled) <= INLINE_BYTES:
            return PackedTests(key=key, size=len(pickled), pickled=pickled)
        if key not in self._references:
            import ray

            self._references[key] = ray.put(pickled), len(pickled)
        self._references.move_to_end(key)
        reference, size = self._references[key]
        while len(self._references) > 1 and sum(kept for _, kept in self._references.values()) > KEPT_MIB << 20:
            self._references.popitem(last=False)
        return PackedTests(key=key, size=size, reference=reference)


def _has_pulse(pool: Any) -> bool:
    """Whether its process runs. One that died is known by its call, which Ray repeats in the next process."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        ray.get(pool.pulse.options(concurrency_group=PULSE).remote(), timeout=PULSE_S)
    except GetTimeoutError:
        return False
    except RayError as error:
        log.warning("a sandbox pool has no pulse: %s", first_line(error))
    return True


def judge_deadline_s(config: SandboxConfig) -> float:
    """Seconds after which a `PoolJudge` has answered, whatever happened."""
    return config.deadline_s + answer_s(config) + RESTART_S
