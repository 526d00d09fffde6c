"""One generator's side of weight sync: load, verify, commit, or refuse (law 2). docs/weight_sync.md tells the story.

    check manifest ─► pause ─► each bucket: map, hash, load ─► count ─► fingerprints ─► resume ─► canary ─► commit

Refused at the first step, nothing was touched and the old version goes on. Refused before the resume, the engine
stays paused with its requests. Refused by the canary, requests are aborted and the engine is paused again. A full
resend heals each of these. The first buckets come, and the very first is hashed, while the engine goes to its pause.
`install_states.py` says what the weights may be taken for meanwhile. Where the learner broadcasts, half of the deadline
is for that; if it breaks, the other half is for the whole weight set from the object store.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import numpy as np

from funicular.actors.arriving_buckets import ArrivingBuckets
from funicular.actors.broadcast_source import BroadcastSource, begin_broadcast
from funicular.actors.bucket_source import Bucket, BucketSource
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.engine_link import EngineLink
from funicular.actors.errors import BroadcastBroken
from funicular.actors.install_states import Event, WeightState, after
from funicular.actors.version_gate import VersionGate
from funicular.actors.weight_check import ExpectedTensor, check_in_use, check_manifest, check_received
from funicular.actors.weights import (
    Canary,
    Manifest,
    PublishedWeights,
    SyncRecord,
    WeightSyncError,
    canary_tolerance,
)


class WeightInstaller:
    """Installs published weights in one engine.

    Args:
        buckets: where buckets come from, if they are not broadcast.
        expected: what the engine needs, from `funicular_expected_tensors`.
        gate: where the outcome of every attempt is written.
        abort_running: called when running requests are about to be aborted, with the reason.
    """

    def __init__(
        self,
        engine: EngineLink,
        buckets: BucketSource,
        *,
        name: str,
        config: GeneratorConfig,
        sync: WeightSyncConfig,
        expected: list[ExpectedTensor],
        gate: VersionGate,
        abort_running: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._buckets = buckets
        self._name = name
        self._config = config
        self._sync = sync
        self._expected = expected
        self._gate = gate
        self._abort_running = abort_running
        self._lock = asyncio.Lock()
        self._stage = "manifest"
        self._state = WeightState.INITIAL
        self._fetched_bytes = 0
        self._broadcast_bytes, self._broadcast_broken = 0, ""
        self._frozen_hashes: tuple[int, ...] = ()  # of the frozen buckets that the engine holds
        self._asleep = False
        self.seconds: dict[str, float] = {}
        """Of the last install, by part."""

    @property
    def running(self) -> bool:
        """An install is under way."""
        return self._lock.locked()

    @property
    def state(self) -> WeightState:
        """What the engine's weights may be taken for."""
        return self._state

    @property
    def usable(self) -> bool:
        """The engine holds committed weights. False: it is paused until an install succeeds."""
        return self._state is WeightState.SERVING

    async def install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        """Load, verify and commit.

        Raises:
            WeightSyncError: the version was not committed; `stage` says where it failed.
        """
        try:
            async with asyncio.timeout(self._sync.deadline_s), self._lock:
                return await self._install(published, attempt)
        except WeightSyncError:
            raise
        except TimeoutError as error:
            detail = f"not done within {self._sync.deadline_s:.0f} s (weight_sync.deadline_s)"
            raise WeightSyncError(self._stage, detail) from error
        except Exception as error:  # the engine hands on whatever its workers raised, as text
            raise WeightSyncError(self._stage, f"{type(error).__name__}: {error}") from error

    @property
    def asleep(self) -> bool:
        """The engine has no weights, because others have its memory."""
        return self._asleep

    async def sleep(self) -> None:
        """Free the engine's memory, its weights' too; what runs is aborted. Only an install leads back to serving."""
        async with self._lock:
            if self._asleep:
                return
            self._abort_running("gpus_handed_over")
            self._frozen_hashes = ()
            self._happened("discarded")
            self._asleep = True
            await self._engine.sleep()

    async def wake(self) -> None:
        """Have the engine take its memory again: it is ready for an install."""
        async with self._lock:
            if self._asleep:
                await self._engine.wake()
                self._asleep = False

    async def _install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        manifest = published.manifest
        label = f"{manifest.version}.{attempt}"
        self._stage = "manifest"
        self._check(published, label)

        self.seconds = {}
        clock = _Clock(self.seconds)
        self._fetched_bytes = 0
        self._stage = "load"
        self._happened("begin")
        held = manifest.frozen_buckets if manifest.frozen_hashes == self._frozen_hashes else 0
        try:
            await self._bring(published, held, clock)
            self._happened("loaded")
            self._stage = "verify"
            self._gate.open(label, manifest.version)
            await self._engine.label(label)
            used = await self._engine.in_use(manifest.column_seed, manifest.columns)
            elements, columns = check_in_use(manifest, used)
            clock.lap("fingerprints")
            self._happened("verified")
            self._stage = "canary"
            canary_error = await self._ask_canary(manifest.canary, label, clock)
        except BaseException as error:
            await self._refuse(label, str(error))
            raise
        self._frozen_hashes = manifest.frozen_hashes
        self._gate.commit(label)
        self._happened("committed")
        return self._record(manifest, canary_error, elements, columns)

    def _check(self, published: PublishedWeights, label: str) -> None:
        """Everything that can be known before the engine is touched."""
        manifest = published.manifest
        if self._asleep:
            raise WeightSyncError("manifest", "the engine sleeps: it has no memory for weights")
        if self._gate.committed is not None and manifest.version < self._gate.committed:
            raise WeightSyncError(
                "manifest",
                f"version {manifest.version} is older than {self._gate.committed}, which is committed",
            )
        if not self._gate.is_new(label):
            raise WeightSyncError("manifest", f"attempt {label} was made before; every attempt needs a new number")
        if len(published.buckets) != len(manifest.bucket_sizes):
            raise WeightSyncError("manifest", f"{len(published.buckets)} buckets of {len(manifest.bucket_sizes)}")
        check_manifest(manifest, self._expected)

    async def _bring(self, published: PublishedWeights, first: int, clock: _Clock) -> None:
        """All buckets from the `first` on: by broadcast where there is one; else, or if it breaks, from the source."""
        self._broadcast_bytes, self._broadcast_broken = 0, ""
        if published.sender is not None:
            try:
                source = await self._broadcast(published, first, clock)
                await self._bring_from(source, published, first, clock)
                self._broadcast_bytes = sum(published.manifest.bucket_sizes[first:])
                return
            except BroadcastBroken as error:
                self._broadcast_broken = str(error)
        await self._bring_from(self._buckets, published, first, clock)

    async def _broadcast(self, published: PublishedWeights, first: int, clock: _Clock) -> BroadcastSource:
        self._stage = "bucket"
        try:
            return await begin_broadcast(
                published,
                first,
                self._engine,
                generator=self._name,
                workers=self._config.tensor_parallel_size,
                seconds=self._sync.deadline_s / 2,
            )
        finally:
            clock.skip()

    async def _bring_from(self, source: BucketSource, published: PublishedWeights, first: int, clock: _Clock) -> None:
        async with ArrivingBuckets(source, published, first) as arriving:
            await self._pause(arriving, clock)
            await self._load(published.manifest, first, arriving, clock)

    async def _pause(self, arriving: ArrivingBuckets, clock: _Clock) -> None:
        """Pause the engine; its workers hash the first bucket meanwhile, which touches nothing."""
        expecting = asyncio.create_task(self._expect(arriving))
        try:
            await self._engine.pause(self._config.update_mode, keep_cache=self._config.cache_in_flight == "keep")
            clock.lap("pause")
            self._stage = "bucket"
            await expecting
            clock.lap("fetch")
        finally:
            expecting.cancel()
            await asyncio.gather(expecting, return_exceptions=True)

    async def _expect(self, arriving: ArrivingBuckets) -> None:
        await self._engine.expect(await arriving.wait())

    async def _load(self, manifest: Manifest, first: int, arriving: ArrivingBuckets, clock: _Clock) -> None:
        """Bytes to parameters; while one bucket is loaded the next is hashed, if it is there, and another fetched.

        Frozen buckets that the engine holds, those before the `first`, stay where they are; what it uses of them is
        fingerprinted all the same.
        """
        self._stage = "load"
        await self._engine.begin()
        clock.lap("start")
        opened = []  # while they are held the object store cannot spill what a loader may still have views of
        for index in range(first, len(manifest.bucket_sizes)):
            self._stage = "bucket"
            bucket = await arriving.take()
            opened.append(bucket)
            self._fetched_bytes += bucket.fetched_bytes
            clock.lap("fetch")
            try:
                await self._load_bucket(manifest, index, bucket, arriving.here(), clock)
            finally:
                bucket.close()
        self._stage = "load"
        sent = [entry for entry in manifest.tensors if entry.bucket >= first]
        check_received(sent, await self._engine.received())
        clock.split(packing=await self._engine.finish(), rest="finish")

    async def _load_bucket(
        self, manifest: Manifest, index: int, bucket: Bucket, upcoming: Bucket | None, clock: _Clock
    ) -> None:
        self._stage = "load"
        published = manifest.bucket_hashes[index]
        tensors = [entry for entry in manifest.tensors if entry.bucket == index]
        loaded = await self._engine.load(bucket, published, tensors, upcoming)
        self._stage = "bucket"
        for rank, worker in enumerate(loaded):
            if worker.wrong:
                raise WeightSyncError("bucket", f"bucket {index}: worker {rank} {worker.wrong}")
        clock.split(
            hash=max(worker.hash_seconds for worker in loaded),
            load=max(worker.load_seconds for worker in loaded),
            packing=max(worker.packing_seconds for worker in loaded),
            rest="calls",
        )

    async def _ask_canary(self, canary: Canary, label: str, clock: _Clock) -> float:
        """A paused engine answers nobody: the canary runs beside the kept requests, whose tokens wait at the gate."""
        waiting = await self._engine.resume_with(canary, label)
        clock.lap("resume")
        logprobs = await self._engine.canary_logprobs(canary, waiting)
        clock.lap("canary")
        return self._judge(canary, logprobs)

    async def _refuse(self, label: str, reason: str) -> None:
        deciding = self._state is WeightState.DECIDING
        self._happened("failed")
        self._frozen_hashes = ()
        if not self._gate.is_new(label):
            self._gate.reject(label, reason)
        if deciding:
            self._abort_running("weights_rejected")
            await self._engine.silence()

    def _judge(self, canary: Canary, logprobs: list[float]) -> float:
        error = float(np.mean(np.abs(np.array(logprobs) - np.array(canary.logprobs))))
        tolerance = canary_tolerance(self._config.dtype, self._sync.canary_tolerance)
        if math.isnan(error) or error > tolerance:
            raise WeightSyncError(
                "canary",
                f"log-probabilities are {error:.3g} nats off the learner's on average; {tolerance:g} allowed "
                "(weight_sync.canary_tolerance)",
            )
        return error

    def _record(self, manifest: Manifest, canary_error: float, elements: int, columns: int) -> SyncRecord:
        parts = self.seconds
        return SyncRecord(
            generator=self._name,
            version=manifest.version,
            paused_seconds=sum(parts.values()) - parts["canary"],
            load_seconds=sum(parts[part] for part in ("start", "fetch", "hash", "load", "packing", "calls", "finish")),
            packing_seconds=parts["packing"],
            verify_seconds=parts["fingerprints"] + parts["canary"],
            total_bytes=manifest.total_bytes,
            fetched_bytes=self._fetched_bytes,
            broadcast_bytes=self._broadcast_bytes,
            broadcast_broken=self._broadcast_broken,
            canary_error=canary_error,
            fingerprints_checked=elements,
            columns_checked=columns,
        )

    def _happened(self, event: Event) -> None:
        self._state = after(self._state, event)


class _Clock:
    """Adds the seconds since the last lap to a named part."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self._add(part, now - self._last)
        self._last = now

    def skip(self) -> None:
        """What has passed since the last lap is no part: the engine was running."""
        self._last = time.monotonic()

    def split(self, *, rest: str, **parts: float) -> None:
        """A lap of which some parts are known."""
        now = time.monotonic()
        for part, seconds in parts.items():
            self._add(part, seconds)
        self._add(rest, max(0.0, now - self._last - sum(parts.values())))
        self._last = now

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
