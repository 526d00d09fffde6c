"""A teacher: one vLLM engine that says how probable its model finds the tokens that the student sampled.

A plain class; `teacher_actor` wraps it for Ray. Its weights are its model folder's and never change. It draws nothing
at random, so a group may be scored again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.types import GroupPayload, TeacherPayload, TeacherRecord

CONCURRENT_CALLS = 4096
"""Groups under way at once, and health checks beside them."""
_WATCH_PERIOD_S = 1.0


class Teacher:
    """Owns one engine.

    Args:
        name: in records.
        generator: the generators' settings: the temperature, and how long prompts and completions may be.
        model_folder: a Hugging Face folder, with the student's tokenizer.
        use_gpu: False runs vLLM's CPU backend.
        clock: seconds, by which `distillation.progress_deadline_s` is judged.
    """

    def __init__(
        self,
        name: str,
        config: DistillationConfig,
        generator: GeneratorConfig,
        sync: WeightSyncConfig,
        *,
        model_folder: str,
        use_gpu: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._config = config
        self._generator = generator
        self._sync = sync
        self._model_folder = model_folder
        self._use_gpu = use_gpu
        self._clock = clock
        self._engine: Any = None
        self._places = asyncio.Semaphore(config.max_sequences)
        self._in_engine = 0
        self._last_answer = clock()  # also the last moment at which none was due
        self._request_numbers = itertools.count()

    async def start(self) -> float:
        """Start the engine. Blocks the event loop for about a minute; call once. Returns the seconds it took."""
        from funicular.actors.engine import start_engine

        began = time.monotonic()
        self._engine = start_engine(
            engine_config(self._config, self._generator),
            self._sync,
            model_folder=self._model_folder,
            seed=0,  # nothing is sampled that anybody reads
            use_gpu=self._use_gpu,
            max_batch_tokens=self._config.max_batch_tokens,
        )
        if self._generator.temperature != 1:
            async with asyncio.timeout(self._config.start_deadline_s):
                await self._engine.collective_rpc("funicular_divide_logits", args=(self._generator.temperature,))
        return time.monotonic() - began

    async def score(self, payload: GroupPayload) -> tuple[TeacherRecord, TeacherPayload]:
        """Log-probability of each completion token under the teacher, at the temperature that sampled it.

        Raises:
            GroupFailed: `engine_died`, `engine_error`, `no_progress` or `refused`.
        """
        began = time.monotonic()
        prompt_ids = payload.prompt_ids.tolist()
        completions_G = [payload.token_ids[payload.completion(i)].tolist() for i in range(len(payload.texts))]
        members = [asyncio.create_task(self._score_one(prompt_ids, ids)) for ids in completions_G]
        everyone: asyncio.Future[list[np.ndarray]] = asyncio.gather(*members)
        try:
            while not everyone.done():
                done, _ = await asyncio.wait([everyone], timeout=_WATCH_PERIOD_S)
                if not done:
                    self._check_progress()
            logprobs_G = everyone.result()
        finally:
            for member in members:
                member.cancel()  # a request whose task is cancelled is aborted in the engine
            await asyncio.gather(everyone, *members, return_exceptions=True)
        record = TeacherRecord(
            group_id=payload.group_id,
            teacher=self._name,
            finite_G=tuple(bool(np.isfinite(logprobs).all()) for logprobs in logprobs_G),
            seconds=time.monotonic() - began,
        )
        return record, TeacherPayload(group_id=payload.group_id, logprobs=np.concatenate(logprobs_G))

    def _check_progress(self) -> None:
        """The engine's progress counts, not the group's: one that others keep queued is not hung."""
        limit = self._config.progress_deadline_s
        if self._in_engine and self._clock() - self._last_answer > limit:
            detail = f"{self._name}: the engine scored nothing in {limit:.0f} s (distillation.progress_deadline_s)"
            raise GroupFailed("no_progress", detail)

    async def _score_one(self, prompt_ids: list[int], completion_ids: list[int]) -> np.ndarray:
        """(tokens,) float32."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        async with self._places:
            if not self._in_engine:
                self._last_answer = self._clock()  # the engine had nothing to do until now
            self._in_engine += 1
            try:
                logprobs = await self._prompt_logprobs([*prompt_ids, *completion_ids])
            except VLLMClientError as error:
                raise GroupFailed("refused", f"{self._name}: {error}", retry_task=False) from error
            except EngineDeadError as error:
                raise GroupFailed("engine_died", f"{self._name}: {error}") from error
            except EngineGenerateError as error:
                raise GroupFailed("engine_error", f"{self._name}: {error.__cause__ or error}") from error
            finally:
                self._in_engine -= 1
            self._last_answer = self._clock()
        return logprobs[len(prompt_ids) :]

    async def _prompt_logprobs(self, token_ids: list[int]) -> np.ndarray:
        """(tokens,) float32: of each token given those before it; NaN for the first."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        parameters = SamplingParams(
            max_tokens=1,  # at least one is sampled; it is thrown away
            prompt_logprobs=0,  # of the prompt's own tokens alone
            detokenize=False,
            flat_logprobs=True,
        )
        request_id = f"{self._name}-{next(self._request_numbers)}"
        rows: Any = None
        async for output in self._engine.generate(tokens_input(token_ids), parameters, request_id=request_id):
            rows = output.prompt_logprobs if output.prompt_logprobs else rows
        given = [] if rows is None else rows.token_ids
        if list(given) != token_ids[1:]:
            raise GroupFailed("engine_error", f"{self._name}: scored {len(given)} tokens of {len(token_ids) - 1}")
        return np.array([np.nan, *rows.logprobs], dtype=np.float32)

    async def health(self) -> str:
        """The name.

        Raises:
            GroupFailed: `engine_died`; this teacher must be rebuilt.
        """
        if self._engine is None or self._engine.errored:
            raise GroupFailed("engine_died", f"{self._name}: the engine is not running")
        return self._name

    async def stop(self) -> None:
        """End the engine and its processes."""
        if self._engine is not None:
            self._engine.shutdown()


def engine_config(config: DistillationConfig, generator: GeneratorConfig) -> GeneratorConfig:
    """What the teacher's engine is started with: prompts and completions together are its prompts."""
    return replace(
        generator,
        tensor_parallel_size=config.tensor_parallel_size,
        dtype=generator.dtype if config.dtype == "auto" else config.dtype,
        max_prompt_tokens=generator.max_prompt_tokens + generator.max_completion_tokens,
        max_completion_tokens=1,
        max_sequences=config.max_sequences,
        kv_cache_gib=config.kv_cache_gib,
        gpu_memory_fraction=config.gpu_memory_fraction,
        cpu_threads=config.cpu_threads,
        start_deadline_s=config.start_deadline_s,
        engine_options={},  # they are meant for the policy's engines
    )


def teacher_actor() -> Any:
    """The Ray actor class around `Teacher`; the caller gives name and resources with `.options`.

    Payloads are returned, so that the caller owns them and they outlive the teacher.
    """
    import ray

    class TeacherActor(Teacher):
        @ray.method(num_returns=2)
        async def score(self, payload: GroupPayload) -> tuple[TeacherRecord, TeacherPayload]:
            return await super().score(payload)

    options = {"max_concurrency": CONCURRENT_CALLS, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(**options)(TeacherActor)
