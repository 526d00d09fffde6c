"""One engine as a recipe's generators have it, and what its hardware can do: for `funicular bench generate`.

Nothing is learnt here, so there is no weight sync: the engine serves the weights of the model folder.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.sampling import sampling_parameters
from funicular.actors.types import GenerationRequest
from funicular.rewards.types import Task

_COPIED_BYTES = 1 << 29
_PRODUCT = 1024
"""Rows and columns of the matrices whose product is timed."""
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the hardware of one engine does at most, all its workers together."""

    bytes_per_s: float
    """Read and written, by copying memory."""
    flops_per_s: float
    """Of a product of square matrices in the engine's type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What one token costs a model."""

    body_parameters: int
    """Parameters that each token goes through, but for the output head."""
    head_parameters: int
    """Of the output head; a tied one is the embedding."""
    parameter_bytes: int
    cache_bytes_per_token: int
    """Keys and values of one token in all layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Completions of one length, all at the same time."""

    seconds: float
    prompt_tokens: tuple[int, ...]
    """Of each task."""
    sequences: int
    tokens: int
    """Of each sequence."""


class BenchedEngine:
    """Owns the engine. Its arguments are those of a `Generator`."""

    def __init__(
        self, config: GeneratorConfig, sync: WeightSyncConfig, *, model_folder: str, chat_template: str, use_gpu: bool
    ) -> None:
        self._config = config
        self._sync = sync
        self._model_folder = model_folder
        self._chat_template = chat_template
        self._use_gpu = use_gpu
        self._numbers = itertools.count()

    def limits(self) -> Limits:
        """Measured in this process, before the engine takes the device."""
        import torch

        from funicular.actors.engine import worker_threads

        workers = self._config.tensor_parallel_size
        device = torch.device("cuda" if self._use_gpu else "cpu")
        if not self._use_gpu:
            torch.set_num_threads(workers * worker_threads(self._config))
            workers = 1  # of the same memory and cores
        bytes_per_s = workers * _copied_per_s(device)
        flops_per_s = workers * _multiplied_per_s(getattr(torch, self._config.dtype), device)
        if self._use_gpu:
            torch.cuda.empty_cache()
        return Limits(bytes_per_s=bytes_per_s, flops_per_s=flops_per_s)

    async def start(self) -> Size:
        """Start the engine; what a token costs its model."""
        from funicular.actors.engine import start_engine
        from funicular.actors.prompts import Prompts, load_tokenizer

        self._prompts = Prompts(load_tokenizer(self._model_folder), self._chat_template)
        self._engine = start_engine(
            self._config, self._sync, model_folder=self._model_folder, seed=0, use_gpu=self._use_gpu
        )
        async with asyncio.timeout(self._config.start_deadline_s):
            tensors = (await self._engine.collective_rpc("funicular_expected_tensors"))[0]
        return _size(tensors, self._engine.vllm_config, self._config)

    async def run(self, tasks: Sequence[Task], count: int, tokens: int) -> Round:
        """Complete each task `count` times by exactly `tokens` tokens, all at the same time.

        Raises:
            ValueError: a prompt that the recipe does not allow, or that has images.
        """
        config = replace(
            self._config,
            max_completion_tokens=tokens,
            min_completion_tokens=0,
            stop=[],
            stop_token_ids=[],
            stop_repetition_count=0,
        )
        prompts = [self._prompt(task) for task in tasks]
        began = time.monotonic()
        async with asyncio.timeout(config.start_deadline_s), asyncio.TaskGroup() as requests:
            for task, prompt in zip(tasks, prompts, strict=True):
                request = GenerationRequest(
                    group_id=task.task_id, task=task, count=count, temperature=config.temperature
                )
                for member in range(count):
                    parameters = sampling_parameters(config, request, member)
                    parameters.ignore_eos = True  # completions of one length make a batch that stays full
                    requests.create_task(self._complete(prompt, parameters))
        return Round(
            seconds=time.monotonic() - began,
            prompt_tokens=tuple(map(len, prompts)),
            sequences=len(tasks) * count,
            tokens=tokens,
        )

    def _prompt(self, task: Task) -> list[int]:
        if task.images:
            raise ValueError(f"task {task.task_id} has images: generation is measured with text only")
        prompt = self._prompts.render(task)
        if len(prompt) > self._config.max_prompt_tokens:
            raise ValueError(
                f"generator.max_prompt_tokens={self._config.max_prompt_tokens}: the prompt of task {task.task_id} has "
                f"{len(prompt)} tokens"
            )
        return prompt

    async def _complete(self, prompt: list[int], parameters: Any) -> None:
        from vllm.inputs import tokens_input

        async for _ in self._engine.generate(tokens_input(prompt), parameters, request_id=str(next(self._numbers))):
            pass


def _size(tensors: Sequence[tuple[str, Sequence[int], str]], vllm_config: Any, config: GeneratorConfig) -> Size:
    """From the tensors of a weight set. All experts of a mixture count."""
    sizes = {name: math.prod(shape) for name, shape, _ in tensors}
    embedding = next(size for name, size in sizes.items() if name.endswith("embed_tokens.weight"))
    head = next((size for name, size in sizes.items() if name.endswith("lm_head.weight")), embedding)
    tied = not any(name.endswith("lm_head.weight") for name in sizes)
    item = 2 if config.dtype == "bfloat16" else 4
    model, whole = vllm_config.model_config, vllm_config.parallel_config
    cache_item = 1 if str(config.engine_options.get("kv_cache_dtype", "auto")).startswith("fp8") else item
    heads = model.get_total_num_kv_heads() * model.get_head_size()
    return Size(
        body_parameters=sum(sizes.values()) - embedding - (0 if tied else head),
        head_parameters=head,
        parameter_bytes=item,
        cache_bytes_per_token=2 * model.get_num_layers(whole) * heads * cache_item,
    )


def _copied_per_s(device: Any) -> float:
    """Bytes read and written a second."""
    import torch

    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _fastest(lambda: target.copy_(source), device)


def _multiplied_per_s(dtype: Any, device: Any) -> float:
    """Floating-point operations a second."""
    import torch

    matrix = torch.ones(_PRODUCT, _PRODUCT, dtype=dtype, device=device)
    return 2 * _PRODUCT**3 / _fastest(lambda: torch.nn.functional.linear(matrix, matrix), device)


def _fastest(work: Any, device: Any) -> float:
    """Seconds, the best of several."""
    import torch

    seconds = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])  # the first touches every page


def benched_engine_actor() -> Any:
    """The Ray actor class around `BenchedEngine`."""
    import ray

    return ray.remote(max_restarts=0, max_task_retries=0)(BenchedEngine)
