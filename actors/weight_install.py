"""One generator's side of weight sync: load, verify, commit, or refuse (law 2). docs/weight_sync.md tells the story.

    check manifest ─► pause ─► each bucket: write, hash, load ─► count ─► fingerprints ─► resume ─► canary ─► commit

Refused at the first step, nothing was touched and the old version goes on. Refused before the resume, the engine
stays paused with its requests. Refused by the canary, requests are aborted and the engine is paused again. A full
resend heals each of these.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.shm_files import write_bucket
from funicular.actors.version_gate import VersionGate
from funicular.actors.weight_check import (
    ExpectedTensor,
    Observation,
    check_in_use,
    check_manifest,
    check_received,
)
from funicular.actors.weights import (
    Canary,
    Manifest,
    PublishedWeights,
    SyncRecord,
    WeightSyncError,
    canary_tolerance,
)

PAUSE_DEADLINE_S = 30.0
"""For the pause that follows a rejected canary, when the install's own deadline may be spent."""


class WeightInstaller:
    """Installs published weights in one engine.

    Args:
        engine: vLLM's AsyncLLM, started by `engine.start_engine`.
        expected: what the engine needs, from `funicular_expected_tensors`.
        gate: where the outcome of every attempt is written.
        abort_running: called when running requests are about to be aborted, with the reason.
    """

    def __init__(
        self,
        engine: Any,
        *,
        name: str,
        config: GeneratorConfig,
        sync: WeightSyncConfig,
        expected: list[ExpectedTensor],
        gate: VersionGate,
        abort_running: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._name = name
        self._config = config
        self._sync = sync
        self._expected = expected
        self._gate = gate
        self._abort_running = abort_running
        self._lock = asyncio.Lock()
        self._stage = "manifest"
        self.usable = False
        """The engine holds committed weights. False: it is paused until an install succeeds."""
        self.seconds: dict[str, float] = {}
        """Of the last install, by part."""

    @property
    def running(self) -> bool:
        """An install is under way."""
        return self._lock.locked()

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

    async def _install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        manifest = published.manifest
        label = f"{manifest.version}.{attempt}"
        self._stage = "manifest"
        self._check(published, label)

        self.seconds = {}
        clock = _Clock(self.seconds)
        self._stage = "load"
        self.usable = False
        keep_cache = self._config.cache_in_flight == "keep"
        await self._engine.pause_generation(mode="keep", clear_cache=not keep_cache)
        clock.lap("pause")
        await self._load(published, clock)
        self._gate.open(label, manifest.version)
        try:
            self._stage = "verify"
            await self._engine.update_weight_version(label)
            elements, columns = await self._verify(manifest)
            clock.lap("fingerprints")
            self._stage = "canary"
            # A paused engine answers nobody: the canary runs beside the kept requests, whose tokens wait at the gate.
            logprobs = await self._resume_and_ask(manifest.canary, label, clock)
            canary_error = self._judge(manifest.canary, logprobs)
        except BaseException as error:
            self._gate.reject(label, str(error))
            if self._stage == "canary":
                await self._silence()
            raise
        self._gate.commit(label)
        self.usable = True
        parts = self.seconds
        return SyncRecord(
            generator=self._name,
            version=manifest.version,
            paused_seconds=sum(parts.values()) - parts["canary"],
            load_seconds=sum(parts[part] for part in ("start", "fetch", "hash", "load", "finish")),
            verify_seconds=parts["fingerprints"] + parts["canary"],
            total_bytes=manifest.total_bytes,
            canary_error=canary_error,
            fingerprints_checked=elements,
            columns_checked=columns,
        )

    def _check(self, published: PublishedWeights, label: str) -> None:
        """Everything that can be known before the engine is touched."""
        manifest = published.manifest
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

    async def _load(self, published: PublishedWeights, clock: _Clock) -> None:
        """Bytes to parameters; the next bucket is written while the workers load one."""
        manifest = published.manifest
        await self._engine.collective_rpc("funicular_abandon_update")
        await self._engine.start_weight_update()
        clock.lap("start")
        upcoming = asyncio.create_task(self._write(published, 0))
        try:
            for index in range(len(manifest.bucket_sizes)):
                self._stage = "bucket"
                path = await upcoming
                clock.lap("fetch")
                try:
                    if index + 1 < len(manifest.bucket_sizes):
                        upcoming = asyncio.create_task(self._write(published, index + 1))
                    await self._load_bucket(manifest, index, path, clock)
                finally:
                    path.unlink()
        finally:
            await _discard(upcoming)
        self._stage = "load"
        check_received(manifest, await self._engine.collective_rpc("funicular_received"))
        await self._engine.finish_weight_update()
        clock.lap("finish")

    async def _write(self, published: PublishedWeights, index: int) -> Path:
        """Fetch a bucket from the object store and copy it where the workers can map it."""
        size = published.manifest.bucket_sizes[index]
        try:
            data = await published.buckets[index]
        except Exception as error:  # whatever the object store says of a lost object
            raise WeightSyncError("bucket", f"bucket {index} could not be fetched: {error}") from error
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (size,):
            got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise WeightSyncError("bucket", f"bucket {index} is {got}, expected uint8 ({size},)")
        try:
            return await write_bucket(data)
        except OSError as error:
            raise WeightSyncError("bucket", f"bucket {index}: {error}") from error

    async def _load_bucket(self, manifest: Manifest, index: int, path: Path, clock: _Clock) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        size, published = manifest.bucket_sizes[index], manifest.bucket_hashes[index]
        hashes = await self._engine.collective_rpc("funicular_open_bucket", args=(str(path), size))
        clock.lap("hash")
        for rank, seen in enumerate(hashes):
            if seen != published:
                raise WeightSyncError(
                    "bucket",
                    f"bucket {index}: worker {rank} sees bytes that hash to {seen}, published {published}",
                )
        self._stage = "load"
        tensors = [
            (entry.name, list(entry.shape), entry.dtype, entry.offset, entry.nbytes)
            for entry in manifest.tensors
            if entry.bucket == index
        ]
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info={"tensors": tensors}))
        clock.lap("load")

    async def _verify(self, manifest: Manifest) -> tuple[int, int]:
        args = (manifest.version, manifest.columns)
        reports = await self._engine.collective_rpc("funicular_report", args=args)
        return check_in_use(manifest, [[_observation(row) for row in rows] for rows in reports])

    async def _resume_and_ask(self, canary: Canary, label: str, clock: _Clock) -> list[float]:
        """Resume with the canary first in the queue; returns the log-probabilities of its tokens but the first."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        parameters = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompt = tokens_input(list(canary.token_ids))
        waiting = await self._engine.add_request(f"canary-{label}", prompt, parameters, priority=-10)
        await self._engine.resume_generation()
        clock.lap("resume")
        output = await waiting.get()
        while not output.finished:
            output = await waiting.get()
        clock.lap("canary")
        rows = output.prompt_logprobs[1:]
        return [row[token].logprob for token, row in zip(canary.token_ids[1:], rows, strict=True)]

    async def _silence(self) -> None:
        """Abort what runs on rejected weights; what arrives waits for an install that succeeds."""
        self._abort_running("weights_rejected")
        pause = self._engine.pause_generation(mode="abort", clear_cache=True)
        await asyncio.wait_for(pause, PAUSE_DEADLINE_S)

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


class _Clock:
    """Adds the seconds since the last lap to a named part."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now


def _observation(row: Any) -> Observation:
    tensor, module, kind, shard, shards, fingerprint = row
    return Observation(tensor=tensor, module=module, kind=kind, shard=shard, shards=shards, fingerprint=fingerprint)


async def _discard(upcoming: asyncio.Task[Path]) -> None:
    """Give up on a bucket that nobody waits for any more, and remove its file if it was written."""
    upcoming.cancel()
    (outcome,) = await asyncio.gather(upcoming, return_exceptions=True)
    if isinstance(outcome, Path):
        outcome.unlink(missing_ok=True)
