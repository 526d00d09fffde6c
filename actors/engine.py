"""Starts a vLLM engine with the settings that this project relies on, on CPU and on GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from funicular.actors import vllm_cpu_kernels
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.images import is_vision_model
from funicular.actors.served_adapter import ServedAdapter
from funicular.cluster.rendezvous import NCCL_ENVIRONMENT

CPU_BLOCK = 32
"""Tokens of a block of the KV cache. vLLM's is 128 on CPU: a shorter prompt would be computed once for each completion.
"""
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Executor of one worker on CPU. By its short name vLLM would start one process more, only to bind threads."""
_GIB = 1 << 30


def start_engine(
    config: GeneratorConfig,
    sync: WeightSyncConfig,
    *,
    model_folder: str,
    seed: int,
    use_gpu: bool,
    sleeps: bool = False,
    max_batch_tokens: int | None = None,
    adapter: ServedAdapter | None = None,
    stat_loggers: Sequence[Any] = (),
) -> Any:
    """Start an AsyncLLM in the running event loop, which it blocks meanwhile (about a minute).

    Args:
        sleeps: on a GPU, its memory can be freed and taken again.
        max_batch_tokens: tokens of one pass through the model; None: vLLM's choice.
        adapter: None: no adapter is served.
        stat_loggers: to whom vLLM tells its statistics (`serving_stats.py`).

    Returns:
        The engine, ready to receive weights. Its own weights are those of `model_folder`.
    """
    _set_environment(config, use_gpu=use_gpu)

    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from funicular.actors import vllm_compat

    vllm_compat.register()
    where = _on_gpu(config) if use_gpu else _on_cpu(config)
    if is_vision_model(model_folder):
        where["limit_mm_per_prompt"] = {"video": 0}  # else start-up sizes its buffers for long ones
    if sleeps:
        where["enable_sleep_mode"] = True
    if adapter is not None:
        where |= adapter.engine_arguments()
    where |= config.engine_options
    arguments = AsyncEngineArgs(
        model=model_folder,
        dtype=config.dtype,
        hf_overrides={} if config.head_dtype == "auto" else {"head_dtype": config.head_dtype},
        seed=seed,
        tensor_parallel_size=config.tensor_parallel_size,
        max_model_len=max(config.max_prompt_tokens + config.max_completion_tokens, sync.canary_tokens + 1),
        max_num_seqs=config.max_sequences + 1,  # one place is kept for the canary
        max_num_batched_tokens=max_batch_tokens,
        scheduling_policy="priority",  # the canary goes first
        # Of the distribution that was sampled from, temperature included; the default leaves it out.
        logprobs_mode="processed_logprobs",
        stream_interval=8,
        worker_extension_cls="funicular.actors.vllm_compat.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=vllm_compat.BACKEND),
        disable_log_stats=True,  # of vLLM's own loggers
        enable_log_requests=False,
        **where,
    )
    return AsyncLLM.from_engine_args(arguments, stat_loggers=list(stat_loggers))


def _set_environment(config: GeneratorConfig, *, use_gpu: bool) -> None:
    """What vLLM reads from the environment, in this process and in those that it starts."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(int(config.start_deadline_s))
    os.environ.update(engine_environment(config, use_gpu=use_gpu))
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes


def engine_environment(config: GeneratorConfig, *, use_gpu: bool) -> dict[str, str]:
    """What every engine of ours has in its environment."""
    found = {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "HF_HUB_OFFLINE": "1"}
    if not use_gpu:  # by default one core per worker is kept from computing
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
        found["OMP_NUM_THREADS"] = str(worker_threads(config))
    else:
        found |= NCCL_ENVIRONMENT
    return found


def worker_threads(config: GeneratorConfig) -> int:
    """OpenMP threads of one engine worker on CPU."""
    if config.cpu_threads:
        return config.cpu_threads
    return max(1, len(os.sched_getaffinity(0)) // config.tensor_parallel_size)


def _on_cpu(config: GeneratorConfig) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": int(config.kv_cache_gib * _GIB),
        "block_size": CPU_BLOCK,
        "enforce_eager": True,  # compiling costs minutes on CPU and gains nothing there
        "distributed_executor_backend": IN_PROCESS if config.tensor_parallel_size == 1 else "mp",
        "ir_op_priority": dict(vllm_cpu_kernels.PRIORITY),
    }


def _on_gpu(config: GeneratorConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_fraction}
    if config.tensor_parallel_size > 1:
        arguments["distributed_executor_backend"] = "mp"
    return arguments
