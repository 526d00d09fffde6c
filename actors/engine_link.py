"""A vLLM engine as weight sync uses it: every call that an install makes of it, and nothing else.

Each is one message to the engine's processes and back. Nothing here decides anything: `weight_install.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from funicular.actors.bucket_source import Bucket
from funicular.actors.errors import BroadcastBroken
from funicular.actors.weight_check import Observation
from funicular.actors.weights import Canary, TensorEntry

SILENCE_DEADLINE_S = 30.0
"""For the pause that follows a rejected canary, when the install's own deadline may be spent."""

_PAUSE_MODES = {"in_flight": "keep", "finish_first": "wait", "start_again": "abort"}
"""vLLM's word for each `generator.update_mode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What one engine worker did with a bucket. Its tensors were loaded only if nothing was wrong."""

    wrong: str
    """What the worker sees instead of what was published; empty: nothing is wrong."""
    hash_seconds: float
    """Of a bucket that is broadcast, until it was there."""
    load_seconds: float
    """Without packing."""
    packing_seconds: float
    """Copies that the CPU's matrix kernels multiply by."""


class EngineLink:
    """Args:
    engine: vLLM's AsyncLLM, started by `engine.start_engine`.
    adapter: vLLM's LoRARequest for what is served; None: no adapter is.
    """

    def __init__(self, engine: Any, adapter: Any = None) -> None:
        self._engine = engine
        self._adapter = adapter
        self._has_cache = True

    async def pause(self, update_mode: str, *, keep_cache: bool) -> None:
        """No token is sampled from now on, and new requests queue. Running ones stay, have finished, or are aborted."""
        await self._engine.pause_generation(mode=_PAUSE_MODES[update_mode], clear_cache=not keep_cache)

    async def expect(self, bucket: Bucket) -> None:
        """Have every worker begin to hash the bucket that is loaded first. Every install says which, before `begin`."""
        await self._engine.collective_rpc("funicular_expect", args=(_place(bucket),))

    async def receive(self, address: tuple[str, int], sizes: Sequence[int], seconds: float) -> None:
        """Have every worker get ready to receive buckets of these sizes, from the first load on a few ahead of it.

        Args:
            seconds: within which all must have come.
        """
        await self._engine.collective_rpc("funicular_receive", args=(*address, list(sizes), seconds))

    async def begin(self) -> None:
        """Get ready to receive a whole weight set, whatever an earlier one left behind."""
        await self._engine.collective_rpc("funicular_begin_update")

    async def load(
        self, bucket: Bucket, published_hash: int, tensors: Sequence[TensorEntry], upcoming: Bucket | None
    ) -> list[Loaded]:
        """Have every worker hash a bucket and, if that is right, load its tensors.

        Args:
            upcoming: the one that comes next, if it is there: they hash it meanwhile.

        Raises:
            BroadcastBroken: it was to come to the workers themselves, and did not come to all.
        """
        rows = [
            (entry.name, list(entry.shape), entry.dtype, entry.offset, entry.nbytes, entry.fingerprint)
            for entry in tensors
        ]
        following = None if upcoming is None else _place(upcoming)
        args = (bucket.path, bucket.offset, bucket.nbytes, bucket.lasts, published_hash, rows, following)
        answers = await self._engine.collective_rpc("funicular_load_bucket", args=args)
        for rank, (missing, *_) in enumerate(answers):
            if missing:
                raise BroadcastBroken(f"worker {rank}: {missing}")
        return [
            Loaded(wrong=wrong, hash_seconds=hashing, load_seconds=loading, packing_seconds=packing)
            for _, wrong, hashing, loading, packing in answers
        ]

    async def received(self) -> list[list[str]]:
        """Names of the tensors that each worker has loaded since `begin`."""
        return await self._engine.collective_rpc("funicular_received")

    async def finish(self) -> float:
        """All tensors are there: bring what depends on them up to date. Returns the seconds that packing took of it."""
        return max(await self._engine.collective_rpc("funicular_finish_update"))

    async def label(self, label: str) -> None:
        """The tokens sampled from now on are marked so."""
        await self._engine.update_weight_version(label)

    async def in_use(self, column_seed: int, columns: int) -> list[list[Observation]]:
        """Fingerprints of what each worker uses."""
        reports = await self._engine.collective_rpc("funicular_report", args=(column_seed, columns))
        return [[_observation(row) for row in rows] for rows in reports]

    async def resume_with(self, canary: Canary, label: str) -> Any:
        """Go on, with the canary first in the queue; returns what `canary_logprobs` waits for."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        parameters = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompt = tokens_input(list(canary.token_ids))
        waiting = await self._engine.add_request(
            f"canary-{label}", prompt, parameters, lora_request=self._adapter, priority=-10
        )
        if not self._has_cache:
            await self._engine.wake_up(["kv_cache"])
            self._has_cache = True
        await self._engine.resume_generation()
        return waiting

    async def canary_logprobs(self, canary: Canary, waiting: Any) -> list[float]:
        """Log-probabilities of the canary's tokens but the first."""
        output = await waiting.get()
        while not output.finished:
            output = await waiting.get()
        rows = output.prompt_logprobs[1:]
        return [row[token].logprob for token, row in zip(canary.token_ids[1:], rows, strict=True)]

    async def sleep(self) -> None:
        """Abort every request, forget all caches, and free the memory of weights and KV cache; the weights are gone.

        vLLM's CPU backend frees nothing; all else is the same there.
        """
        await self._engine.sleep(level=2, mode="abort")
        self._has_cache = False

    async def wake(self) -> None:
        """Have memory for weights again. The KV cache waits for `resume_with`: until then vLLM schedules nothing."""
        await self._engine.wake_up(["weights"])

    async def silence(self) -> None:
        """Abort every request and pause; what arrives waits for an install that succeeds."""
        pause = self._engine.pause_generation(mode="abort", clear_cache=True)
        await asyncio.wait_for(pause, SILENCE_DEADLINE_S)


def _place(bucket: Bucket) -> tuple[str, int, int] | None:
    """Path, offset and bytes; None: it cannot be hashed ahead, because it is gone by then or is broadcast."""
    return None if bucket.path is None or not bucket.lasts else (bucket.path, bucket.offset, bucket.nbytes)


def _observation(row: Any) -> Observation:
    tensor, module, kind, shard, shards, fingerprint = row
    return Observation(tensor=tensor, module=module, kind=kind, shard=shard, shards=shards, fingerprint=fingerprint)
