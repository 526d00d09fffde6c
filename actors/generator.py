"""A generator: one vLLM engine that completes tasks with verified weights only.

`Generator` is a plain class; `generator_actor` wraps it for Ray. Weights arrive through `install`
(`weight_install.py`); `generate` may be called at any time, during an install too: requests wait in the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from funicular.actors.completions import Completion, describe_group, pack_group
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.images import ImageReader, Prompt, PromptMismatch, engine_input, read_prompt
from funicular.actors.process_memory import largest_descendant
from funicular.actors.sampling import sampling_parameters
from funicular.actors.served_adapter import ServedAdapter
from funicular.actors.serving_stats import ServingStats, StatCollector, stat_loggers
from funicular.actors.types import GenerationRecord, GenerationRequest, GroupPayload
from funicular.actors.weights import PublishedWeights, SyncRecord, WeightSyncError

CONCURRENT_CALLS = 4096
"""Calls that one actor answers at once: groups in flight, and health, metrics and installs beside them."""
INITIAL_LABEL = "unverified"
"""The engine's label before the first install; no token carries it, because nothing is generated before."""
_WATCH_PERIOD_S = 1.0


@dataclass(slots=True, eq=False)
class _Group:
    """One group under way."""

    failure: asyncio.Future[None]
    """Set to make the whole group fail."""
    unfinished: int
    """Members that are not complete yet."""
    in_engine: int = 0
    """Members that have a place."""

    def fail(self, reason: str, detail: str) -> None:
        if not self.failure.done():
            self.failure.set_exception(GroupFailed(reason, detail))


class Generator:
    """Owns one engine.

    Args:
        name: in records, and in the ledger.
        model_folder: a Hugging Face folder; its weights only give the engine its shape, and are never served.
        chat_template: `auto`, `plain` or a Jinja file.
        seed: of sampling; give every generator its own.
        use_gpu: False runs vLLM's CPU backend.
        shared_gpus: the GPUs of learner ranks, as CUDA_VISIBLE_DEVICES names them, that this engine has in its turns;
            None: those that Ray gives it, if any, for itself.
        adapter: None: weights are served as they are sent.
        clock: seconds, by which `generator.progress_deadline_s` is judged.
    """

    def __init__(
        self,
        name: str,
        config: GeneratorConfig,
        sync: WeightSyncConfig,
        *,
        model_folder: str,
        chat_template: str,
        seed: int,
        use_gpu: bool,
        shared_gpus: str | None = None,
        adapter: ServedAdapter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._config = config
        self._sync = sync
        self._model_folder = model_folder
        self._chat_template = chat_template
        self._seed = seed
        self._use_gpu = use_gpu
        self._shared_gpus = shared_gpus
        self._adapter = adapter
        self._lora_request = adapter and adapter.request()
        self._engine: Any = None
        self._images: ImageReader | None = None
        self._places = asyncio.Semaphore(config.max_sequences)
        self._request_numbers = itertools.count()
        self._groups: set[_Group] = set()
        self._clock = clock
        self._last_token = clock()  # of any group; also the last moment at which none was due
        self._serving = StatCollector(self._waiting)
        self._counts = {"groups": 0, "groups_failed": 0, "tokens": 0}

    async def start(self) -> dict[str, float]:
        """Start the engine. Blocks the event loop for about a minute; call once.

        Returns:
            Seconds that it took, and number of tensors that a weight set must hold.
        """
        from funicular.actors.bucket_source import StoreSource
        from funicular.actors.delta_source import DeltaSource
        from funicular.actors.engine import start_engine
        from funicular.actors.engine_link import EngineLink
        from funicular.actors.images import image_reader
        from funicular.actors.prompts import Prompts, load_tokenizer
        from funicular.actors.version_gate import VersionGate
        from funicular.actors.weight_check import ExpectedTensor
        from funicular.actors.weight_install import WeightInstaller

        began = time.monotonic()
        if self._shared_gpus is not None:  # Ray gave this process none; before anything here looks for GPUs
            os.environ["CUDA_VISIBLE_DEVICES"] = self._shared_gpus
        self._prompts = Prompts(load_tokenizer(self._model_folder), self._chat_template)
        self._images = image_reader(self._model_folder)
        self._engine = start_engine(
            self._config,
            self._sync,
            model_folder=self._model_folder,
            seed=self._seed,
            use_gpu=self._use_gpu,
            sleeps=self._shared_gpus is not None,
            adapter=self._adapter,
            stat_loggers=stat_loggers(self._name, self._serving),
        )
        async with asyncio.timeout(self._config.start_deadline_s):
            await self._init_weight_transfer()
            expected, *_ = await self._engine.collective_rpc("funicular_expected_tensors")
            if self._adapter is not None:
                wanted = (self._adapter.rank, list(self._adapter.targets))
                expected += (await self._engine.collective_rpc("funicular_serve_adapter", args=wanted))[0]
        self._gate = VersionGate()
        self._installer = WeightInstaller(
            EngineLink(self._engine, self._lora_request),
            DeltaSource() if self._sync.transport == "delta" else StoreSource(),
            name=self._name,
            config=self._config,
            sync=self._sync,
            expected=[ExpectedTensor(name=n, shape=tuple(shape), dtype=d) for n, shape, d in expected],
            gate=self._gate,
            abort_running=self._abort_running,
        )
        return {"seconds": time.monotonic() - began, "tensors": float(len(expected))}

    async def _init_weight_transfer(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        await self._engine.update_weight_version(INITIAL_LABEL)

    @property
    def committed_version(self) -> int | None:
        """Newest policy version that was verified here; None before the first install."""
        return self._gate.committed

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, GroupPayload]:
        """Complete one task `request.count` times.

        Raises:
            GroupFailed: with one of the reasons in docs/weight_sync.md; says whether the task may be tried again.
            RuntimeError: before the first version was committed.
        """
        if self.committed_version is None:
            raise RuntimeError(f"{self._name}: generate before any weights were committed; publish first")
        try:
            record, payload = await self._generate(request)
        except GroupFailed:
            self._counts["groups_failed"] += 1
            raise
        self._counts["groups"] += 1
        self._counts["tokens"] += int(payload.offsets[-1])
        return record, payload

    async def _generate(self, request: GenerationRequest) -> tuple[GenerationRecord, GroupPayload]:
        try:
            short_ids = self._prompts.render(request.task)
            prompt = await asyncio.to_thread(read_prompt, self._images, request.task, short_ids)
        except ValueError as error:
            raise GroupFailed("prompt_refused", str(error), retry_task=False) from error
        if len(prompt.token_ids) > self._config.max_prompt_tokens:
            limit = self._config.max_prompt_tokens
            detail = f"{len(prompt.token_ids)} tokens, generator.max_prompt_tokens={limit}"
            raise GroupFailed("prompt_too_long", detail, retry_task=False)
        began = time.monotonic()
        completions_G = await self._complete(prompt, request)
        seconds = time.monotonic() - began
        labels = {label for completion in completions_G for label, _ in completion.spans}
        versions = await self._gate.versions(labels, self._sync.deadline_s)
        texts = tuple(self._prompts.decode(completion.token_ids) for completion in completions_G)
        payload = pack_group(request.group_id, prompt.token_ids, completions_G, versions, texts, prompt.images)
        return describe_group(self._name, payload, completions_G, seconds), payload

    async def _complete(self, prompt: Prompt, request: GenerationRequest) -> list[Completion]:
        """All completions of a group; when one fails, the others are aborted."""
        group = _Group(failure=asyncio.get_running_loop().create_future(), unfinished=request.count)
        members = [
            asyncio.create_task(self._complete_one(prompt, sampling_parameters(self._config, request, i), group))
            for i in range(request.count)
        ]
        everyone: asyncio.Future[list[Completion]] = asyncio.gather(*members)
        self._groups.add(group)
        try:
            while not everyone.done():
                first: set[asyncio.Future[Any]] = {group.failure, everyone}
                await asyncio.wait(first, timeout=_WATCH_PERIOD_S, return_when=asyncio.FIRST_COMPLETED)
                if group.failure.done():
                    group.failure.result()
                self._check_progress(group)
            return everyone.result()
        finally:
            self._groups.discard(group)
            group.failure.cancel()
            for member in members:
                member.cancel()  # a request whose task is cancelled is aborted in the engine
            await asyncio.gather(everyone, *members, return_exceptions=True)

    def _check_progress(self, group: _Group) -> None:
        """The engine's progress counts, not the group's: one that others keep queued or preempted is not hung.

        Installs have a deadline of their own, and members that wait for a place are in no engine.
        """
        limit = self._config.progress_deadline_s
        if self._installer.running or self._installer.asleep:
            self._last_token = self._clock()
        elif group.in_engine and self._clock() - self._last_token > limit:
            detail = f"{self._name}: the engine gave no token in {limit:.0f} s (generator.progress_deadline_s)"
            raise GroupFailed("no_progress", detail)

    async def _complete_one(self, prompt: Prompt, parameters: Any, group: _Group) -> Completion:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        async with self._places:
            if not any(other.in_engine for other in self._groups):
                self._last_token = self._clock()  # the engine had nothing to do until now
            group.in_engine += 1
            try:
                return await self._stream(prompt, parameters)
            except (VLLMClientError, PromptMismatch) as error:
                raise GroupFailed("prompt_refused", str(error), retry_task=False) from error
            except EngineDeadError as error:
                raise GroupFailed("engine_died", f"{self._name}: {error}") from error
            except EngineGenerateError as error:
                raise GroupFailed("engine_error", f"{self._name}: {error.__cause__ or error}") from error
            finally:
                group.in_engine -= 1
                group.unfinished -= 1

    async def _stream(self, prompt: Prompt, parameters: Any) -> Completion:
        completion = Completion()
        request_id = f"{self._name}-{next(self._request_numbers)}"
        given = await engine_input(self._engine, prompt)
        streamed = self._engine.generate(given, parameters, request_id=request_id, lora_request=self._lora_request)
        async for output in streamed:
            news = output.outputs[0]
            completion.token_ids.extend(news.token_ids)
            if news.token_ids:
                rows = zip(news.token_ids, news.logprobs, strict=True)
                completion.logprobs.extend(row[token].logprob for token, row in rows)
                self._last_token = self._clock()
            if news.finish_reason is None:
                continue
            if news.finish_reason == "abort" and self._config.update_mode == "start_again":
                return await self._stream(prompt, parameters)  # it waits in the engine for the new weights
            if news.finish_reason not in ("stop", "length", "repetition"):
                raise GroupFailed("aborted", f"{self._name}: the engine ended it with {news.finish_reason}")
            completion.truncated = news.finish_reason != "stop"
            completion.repeated = news.finish_reason == "repetition"
            completion.spans = [(span.version, span.end) for span in news.weight_versions or ()]
        return completion

    async def install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        """Load a published version, verify what the engine then uses, and commit it.

        Args:
            attempt: a number that this generator has not seen with this version.

        Raises:
            WeightSyncError: not committed; `stage` is manifest (nothing was touched), bucket, load, verify or
                canary. After the last four nothing is generated until a later install succeeds.
            GroupFailed: `engine_died`; no later install can succeed.
        """
        try:
            return await self._installer.install(published, attempt)
        except WeightSyncError as error:
            if self._engine.errored:
                raise GroupFailed("engine_died", f"{self._name}: {error}") from error
            raise

    async def sleep(self) -> None:
        """Free the engine's memory for others; groups under way fail. Only an install after `wake` leads back.

        Raises:
            GroupFailed: this generator must be rebuilt.
        """
        await self._or_rebuilt(self._installer.sleep())

    async def wake(self) -> None:
        """Take the memory again, ready for an install; raises as `sleep`."""
        await self._or_rebuilt(self._installer.wake())

    async def _or_rebuilt(self, change: Coroutine[Any, Any, None]) -> None:
        try:
            await change
        except Exception as error:  # of whatever kind: nobody knows what memory the engine has now
            raise GroupFailed("engine_died", f"{self._name}: {type(error).__name__}: {error}") from error

    def _abort_running(self, reason: str) -> None:
        """Groups that have nothing in the engine yet go on waiting."""
        for group in self._groups:
            if group.in_engine:
                group.fail(reason, f"{self._name}: aborted")

    async def abort_all(self, reason: str) -> None:
        """Abort every request, also those that wait for a place; their groups fail with `reason`."""
        for group in self._groups:
            group.fail(reason, f"{self._name}: aborted")

    async def health(self) -> dict[str, Any]:
        """State (`serving`, `installing`, `unverified`) and committed version.

        Raises:
            GroupFailed: `engine_died`; this generator must be rebuilt.
        """
        if self._engine is None or self._engine.errored:
            raise GroupFailed("engine_died", f"{self._name}: the engine is not running")
        state = "serving" if self._installer.usable else "unverified"
        if self._installer.running:
            state = "installing"
        return {"name": self._name, "state": state, "committed_version": self.committed_version}

    async def metrics(self) -> dict[str, float]:
        """Counters since the start, and seconds of the last install by part."""
        out = {f"generator/{key}": float(value) for key, value in self._counts.items()}
        out["generator/running"] = float(sum(group.in_engine for group in self._groups))
        out |= {f"sync/{part}_s": seconds for part, seconds in self._installer.seconds.items()}
        return out

    async def serving_stats(self) -> ServingStats:
        """How the engine served since the last call."""
        report = self._serving.report()
        report.worker_memory = await asyncio.to_thread(largest_descendant)
        return report

    def _waiting(self) -> int:
        return sum(group.unfinished - group.in_engine for group in self._groups)

    async def stop(self) -> None:
        """End the engine and its processes."""
        if self._engine is not None:
            self._engine.shutdown()


def generator_actor() -> Any:
    """The Ray actor class around `Generator`; the caller gives name and resources with `.options`.

    Nothing is retried: a second run of `generate` would be other completions under the same name.
    """
    import ray

    class GeneratorActor(Generator):
        @ray.method(num_returns=2)
        async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, GroupPayload]:
            return await super().generate(request)

    options = {"max_concurrency": CONCURRENT_CALLS, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(**options)(GeneratorActor)
