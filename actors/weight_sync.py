"""Publishing a policy version: from the learner's ranks to every generator, as one transaction (law 2).

    learner ranks                        loop                       each generator, by itself
    gather a bucket, hash it    ──►  references, manifest   ──►  check manifest
    fingerprint its tensors          (never the bytes)           pause, load bucket by bucket, check hashes
    canary forward pass                                          fingerprint what the engine uses
                                                                 resume, canary first ──► commit, or refuse

A generator that refuses keeps no token of the version; the version is packed and sent again, then the generator is
rebuilt. docs/weight_sync.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from funicular.actors.doing import Doing
from funicular.actors.weights import PublishedWeights, SyncRecord


class WeightSource(Protocol):
    """The learner, as weight sync sees it."""

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        """Gather and pack the current weights, building on `base` if there is one; the caller owns the buckets."""


class WeightSink(Protocol):
    """The generators, as weight sync sees them."""

    @property
    def behind(self) -> bool:
        """True while a live generator refuses the newest version."""

    async def install(self, weights: PublishedWeights, *, last_attempt: bool) -> list[SyncRecord]:
        """Install on every live generator that lacks the version; those that refuse are rebuilt on the last attempt."""

    async def until_serving(self) -> bool:
        """Return when at least one generator serves verified weights; False: all refuse the newest version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What one publish cost."""

    version: int
    records: Sequence[SyncRecord]
    pack_seconds: float
    seconds: float
    total_bytes: int

    def metrics(self) -> dict[str, float]:
        """Metric names and values; the slowest generator counts."""
        out = {"sync/pack_s": self.pack_seconds, "sync/bytes": float(self.total_bytes)}
        if self.records:
            out["sync/fetched_bytes"] = float(max(r.fetched_bytes for r in self.records))
            out["sync/broadcast_bytes"] = float(min(r.broadcast_bytes for r in self.records))
            out["sync/paused_s"] = max(r.paused_seconds for r in self.records)
            out["sync/load_s"] = max(r.load_seconds for r in self.records)
            out["sync/packing_s"] = max(r.packing_seconds for r in self.records)
            out["sync/verify_s"] = max(r.verify_seconds for r in self.records)
            out["sync/canary_error"] = max(r.canary_error for r in self.records)
        return out


@dataclass(slots=True)
class _Sent:
    """What has been spent on a version so far."""

    records: list[SyncRecord] = field(default_factory=list)
    pack_seconds: float = 0.0
    total_bytes: int = 0


class WeightSync:
    """Moves weights from learner to generators; knows the newest committed version."""

    def __init__(
        self,
        learners: WeightSource,
        generators: WeightSink,
        *,
        attempts: int,
        builds_on: bool = False,
        doing: Doing | None = None,
    ) -> None:
        """Args:
        attempts: sends of one version before a generator that refuses it is rebuilt.
        builds_on: the learner is given what was packed before, for deltas or for what no step changes.
        doing: tells what is under way; None: nobody is told.
        """
        self._learners = learners
        self._generators = generators
        self._attempts = attempts
        self._builds_on = builds_on
        self._doing = doing or Doing(None)
        self._packed: PublishedWeights | None = None
        self.version = -1
        """Newest committed policy version; -1 before the first publish."""

    async def publish(self, version: int) -> PublishReport:
        """Make `version` the weights that generators serve. Returns when it is committed."""
        began = time.monotonic()
        sent = _Sent()
        await self._send(version, sent)
        while not await self._until_serving():
            await self._send(version, sent)  # each round spends restarts, and their budget ends
        self.version = version
        return PublishReport(
            version=version,
            records=sent.records,
            pack_seconds=sent.pack_seconds,
            seconds=time.monotonic() - began,
            total_bytes=sent.total_bytes,
        )

    async def _until_serving(self) -> bool:
        with self._doing("wait_for_generator"):
            return await self._generators.until_serving()

    async def _send(self, version: int, sent: _Sent) -> None:
        """Pack and send until every live generator has committed; those that refuse to the last are rebuilt."""
        for attempt in range(self._attempts):
            began = time.monotonic()
            base, self._packed = self._packed, None
            if attempt or not self._builds_on:  # what is sent again is sent whole
                base = None
            with self._doing("pack"):
                weights = await self._learners.pack(version, base)  # anew each time: the fault may lie in the bytes
            self._packed = weights
            if attempt:  # by another way than the one that may have damaged it
                weights = weights.in_store_only()
            sent.pack_seconds += time.monotonic() - began
            sent.total_bytes = weights.manifest.total_bytes
            last = attempt == self._attempts - 1
            with self._doing("install"):
                sent.records += await self._generators.install(weights, last_attempt=last)
            if not self._generators.behind:
                return
