"""`generator.engine_options`: which of vLLM's arguments may be passed on, and why the others may not.

The names are read from vLLM's source without importing it, which would take twenty seconds.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from funicular.rewards.nearest import did_you_mean

_OWN_KEYS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "seed": "seed",
    "dtype": "generator.dtype",
    "tensor_parallel_size": "generator.tensor_parallel_size",
    "max_model_len": "generator.max_prompt_tokens and generator.max_completion_tokens",
    "max_num_seqs": "generator.max_sequences",
    "gpu_memory_utilization": "generator.gpu_memory_fraction",
    "kv_cache_memory_bytes": "generator.kv_cache_gib",
}
"""Arguments that have keys of their own."""

_OTHER_DISTRIBUTION = (
    "the log-probabilities of tokens would be those of another distribution than the policy's at the sampling "
    "temperature, and the learner could not reproduce them"
)
_OTHER_WEIGHTS = "the engine would use other weights than the learner sends, and refuse every version"
_RELIED_ON = "Funicular sets it: recorded log-probabilities, weight sync or metrics rely on it"
_OTHER_IMAGES = "the engine would see other pixels of an image than the learner; edit preprocessor_config.json instead"
_OTHER_SHAPE = "weight sync reaches tensor-parallel workers of one node only"
_FOREIGN_CODE = "no code of a model's folder is run, in no part: what needs it cannot be trained (docs/security.md)"

_REFUSED = {
    **dict.fromkeys(
        (
            "logprobs_mode",
            "logits_processors",
            "generation_config",
            "override_generation_config",
            "watermark_config",
            "diffusion_config",
            "enable_trace_replay",
        ),
        _OTHER_DISTRIBUTION,
    ),
    **dict.fromkeys(
        (
            "quantization",
            "quantization_config",
            "hf_overrides",
            "model_class_overrides",
            "enable_lora",
            "max_loras",
            "max_lora_rank",
            "max_cpu_loras",
            "lora_dtype",
            "lora_target_modules",
            "fully_sharded_loras",
            "default_mm_loras",
        ),
        _OTHER_WEIGHTS,
    ),
    **dict.fromkeys(
        (
            "scheduling_policy",
            "scheduler_cls",
            "worker_cls",
            "worker_extension_cls",
            "weight_transfer_config",
            "distributed_executor_backend",
            "stream_interval",
            "disable_log_stats",
            "enable_log_requests",
            "runner",
            "convert",
            "skip_tokenizer_init",
            "limit_mm_per_prompt",
            "enable_sleep_mode",
            "sleep_mode_offload_cudagraph",
            "sleep_preserve_parameter_names",
        ),
        _RELIED_ON,
    ),
    **dict.fromkeys(("mm_processor_kwargs", "video_pruning_rate"), _OTHER_IMAGES),
    **dict.fromkeys(("trust_remote_code", "code_revision"), _FOREIGN_CODE),
    **dict.fromkeys(
        (
            "pipeline_parallel_size",
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
            "data_parallel_size",
            "data_parallel_backend",
            "nnodes",
            "node_rank",
        ),
        _OTHER_SHAPE,
    ),
}

SAMPLING_PARAMETERS = (
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "thinking_token_budget",
)
"""What other libraries let a recipe say of sampling, and this one refuses."""
NO_SUCH_SAMPLING = f"tokens are sampled from the whole distribution: with it {_OTHER_DISTRIBUTION} (docs/generation.md)"


def refusal(name: str) -> tuple[str, str] | None:
    """Why an engine option may not be passed on, and what to do instead; None: it may."""
    if name in _OWN_KEYS:
        return "there is a key for it", f"Set {_OWN_KEYS[name]}"
    if name in SAMPLING_PARAMETERS:
        return NO_SUCH_SAMPLING, "Leave it out"
    if name in _REFUSED:
        return _REFUSED[name], "Leave it out"
    known = engine_option_names()
    if known is not None and name not in known:
        expected = "vLLM's AsyncEngineArgs has no such argument"
        return expected, did_you_mean(name, sorted(known - _REFUSED.keys() - _OWN_KEYS.keys()))
    return None


@cache
def engine_option_names() -> frozenset[str] | None:
    """Names of the arguments of the vLLM that is installed here; None: none is, and the engine's start will tell."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return frozenset(
        statement.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not statement.target.id.startswith("_")
    )
