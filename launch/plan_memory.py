"""Memory of one learner rank and one engine worker, part by part, from a recipe and a model's shape.

The formulas are those of docs/memory.md and docs/plan.md, so that a user can check a plan by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from funicular.actors.config import LearnerConfig
from funicular.actors.model_shape import ModelShape
from funicular.actors.tiling import CPU_TILING, GPU_TILING
from funicular.launch.config import Config
from funicular.launch.hardware import Hardware
from funicular.launch.plan_tokens import trained_tokens_of_a_pass

_BYTES = {"float32": 4, "bfloat16": 2}
_BUCKET = 500_000_000
"""Elements of DeepSpeed's buffers for reducing gradients."""
_LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO-3 keeps whole at the same time, at most."""
_PROCESS = 700 << 20
"""Resident bytes of a rank on a CPU before it loads a model (docs/plan.md)."""
_ENGINE_PROCESS = 855 << 20
"""Of an engine worker on a CPU (docs/plan.md)."""
_WEIGHT_SETS = 2
"""Published versions in the object store at the same time: the newest, and the next while it is packed."""
_ENGINE_TOKENS = 2048
"""Of an engine's largest pass: vLLM's choice."""
_SAMPLER_COPIES = 4
"""float32 values for each word and sequence: logits, log-probabilities, probabilities, random numbers."""
_NF4 = 0.5 + 1 / 64 + 1 / 256 / 16
"""Bytes of a weight in 4 bits: a byte a block of 64, double-quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One row of a table of memory."""

    name: str
    nbytes: float
    how: str
    """The formula with its numbers."""


def learner_parts(config: Config, shape: ModelShape, *, on_gpu: bool) -> tuple[Part, ...]:
    """What one learner rank keeps on its device in a step."""
    learner = config.learner
    parts = [*_states(learner, shape), *_reference(config, shape)]
    if not on_gpu:
        parts.append(Part(name="process", nbytes=_PROCESS, how="torch, DeepSpeed and Ray, imported; as measured"))
        parts.append(_object_store(config, shape))
    parts += _passes(config, shape, on_gpu=on_gpu)
    if on_gpu and learner.zero_stage:
        parts.append(_deepspeed_buffers(learner, shape))
    return tuple(part for part in parts if part.nbytes)


def states_of_rank(config: Config, shape: ModelShape) -> float:
    """Bytes that a rank keeps on its device from one step to the next, gradients among them: with `cluster.colocate`
    they wait in the host's memory while generators have the device."""
    return sum(part.nbytes for part in (*_states(config.learner, shape), *_reference(config, shape)))


def _states(learner: LearnerConfig, shape: ModelShape) -> list[Part]:
    size = _BYTES[learner.dtype]
    base = shape.parameters
    trained = shape.adapter_parameters(learner.lora_rank) if learner.lora_rank else base
    whole = _share(learner, 3)
    on_host = learner.offload_parameters == "cpu"
    weights: list[Part] = []
    if learner.lora_rank and learner.quantization == "nf4":
        linear = sum(i * o for i, o in shape.linear)
        rest = base - linear
        nbytes = linear * _NF4 + rest * size
        weights.append(Part(name="weights", nbytes=nbytes, how=f"{_m(linear)} in 4 bits, {_m(rest)} x {size}"))
    else:
        nbytes = 0 if on_host else base * size / whole
        weights.append(Part(name="weights", nbytes=nbytes, how=f"{_m(base)} x {size}{_over(whole)}"))
    if learner.lora_rank:
        how = f"{_m(trained)} x {size}{_over(whole)}: rank {learner.lora_rank} on {len(shape.linear)} layers"
        weights.append(Part(name="adapters", nbytes=trained * size / whole, how=how))
    of_gradients = _share(learner, 2)
    gradients = Part(
        name="gradients",
        nbytes=trained * 4 / of_gradients,
        how=f"{_m(trained)} x 4, summed in float32{_over(of_gradients)}",
    )
    return [*weights, gradients, _optimizer(learner, trained)]


def _optimizer(learner: LearnerConfig, trained: int) -> Part:
    moments = {"adamw": 8, "muon": 4, "adafactor": 0, "sgd": 4 if learner.momentum else 0}[learner.optimizer]
    master = 4 if learner.dtype == "bfloat16" else 0
    over = _share(learner, 1)
    nbytes = 0 if learner.offload_optimizer == "cpu" else trained * (moments + master) / over
    how = f"{_m(trained)} x {moments + master}{_over(over)}"
    return Part(name=f"{learner.optimizer}'s state{' and master weights' if master else ''}", nbytes=nbytes, how=how)


def _reference(config: Config, shape: ModelShape) -> list[Part]:
    learner = config.learner
    if config.algorithm.beta == 0 or learner.lora_rank:
        return []
    size, over = _BYTES[learner.dtype], _share(learner, 3)
    how = f"{_m(shape.parameters)} x {size}{_over(over)}: algorithm.beta={config.algorithm.beta:g}"
    return [Part(name="reference policy", nbytes=shape.parameters * size / over, how=how)]


def _passes(config: Config, shape: ModelShape, *, on_gpu: bool) -> list[Part]:
    learner = config.learner
    longest = config.generator.max_prompt_tokens + config.generator.max_completion_tokens
    tokens = max(learner.micro_batch_tokens, -(-longest // learner.sequence_parallel))
    residual, inner = _BYTES[learner.dtype], _BYTES[learner.compute_dtype]
    of_layer = shape.values_of_a_layer()
    backward = (of_layer + 2 * shape.mlp_width) * inner * tokens  # one layer's, and its MLP's gradients
    if learner.gradient_checkpointing:
        kept = 0 if learner.offload_activations else shape.layers * tokens * shape.width * residual
        how = f"{shape.layers} layers x {tokens} tokens x {shape.width} x {residual}, and one layer whole"
    else:
        kept = (shape.layers - 1) * tokens * of_layer * inner
        how = f"{shape.layers} layers x {tokens} tokens x {of_layer} values x {inner}"
    tiling = GPU_TILING if on_gpu else CPU_TILING
    trained = -(-trained_tokens_of_a_pass(config) // learner.sequence_parallel)
    head = 2 * trained * shape.width * 4
    tied = 4 * shape.head if shape.tied and not learner.lora_rank else 0
    cast = sum(i * o for i, o in shape.linear) * inner if inner != residual and not learner.lora_rank else 0
    return [
        Part(name="weights in the products' type", nbytes=cast, how=f"{_m(cast / inner)} x {inner}, kept over a pass"),
        Part(name="activations", nbytes=kept + backward, how=how),
        Part(name="output head: hidden states", nbytes=head, how=f"2 x {trained} tokens x {shape.width} x 4"),
        Part(name="output head: tied gradient", nbytes=tied, how=f"{_m(shape.head)} x 4"),
        Part(
            name="output head: logits",
            nbytes=3 * tiling.tile_bytes + min(tiling.kept_bytes, 4 * trained * shape.vocabulary),
            how=f"3 tiles of {tiling.tokens} x {tiling.vocabulary} x 4, and kept logits",
        ),
    ]


def _deepspeed_buffers(learner: LearnerConfig, shape: ModelShape) -> Part:
    size = _BYTES[learner.dtype]
    bucket = min(_BUCKET, shape.parameters)
    live = min(_LIVE_PARAMETERS, shape.parameters) if learner.zero_stage == 3 else 0
    how = f"2 buckets of {_m(bucket)} x {size}" + (f", {_m(live)} gathered x {size}" if live else "")
    return Part(name="DeepSpeed's buffers", nbytes=(2 * bucket + live) * size, how=how)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """The KV cache of one engine."""

    nbytes: float
    """Of one worker; below 0: the weights alone do not fit."""
    tokens: float
    """That one engine has room for."""
    longest: int
    """Tokens of the longest completion with its prompt."""

    @property
    def completions(self) -> int:
        """Of the longest kind, that are in flight at the same time."""
        return int(self.tokens // self.longest)


def engine_parts(config: Config, shape: ModelShape, gpu: Hardware | None) -> tuple[list[Part], CacheRoom]:
    """What one engine worker keeps, and the room of its engine's KV cache.

    Args:
        gpu: None: it runs on a CPU.
    """
    generator = config.generator
    size, workers = _BYTES[generator.dtype], generator.tensor_parallel_size
    weights = Part(
        name="weights",
        nbytes=shape.parameters * size / workers,
        how=f"{_m(shape.parameters)} x {size}{_over(workers)}",
    )
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    per_token = shape.cache_values * size / workers
    if gpu:
        room = gpu.memory * generator.gpu_memory_fraction - weights.nbytes
        how = f"{generator.gpu_memory_fraction:g} x {gpu.memory / 1e9:.0f} GB, less the weights"
    else:
        room = generator.kv_cache_gib * 2**30 / workers
        how = f"generator.kv_cache_gib={generator.kv_cache_gib:g}{_over(workers)}"
    cache = Part(name="KV cache", nbytes=max(0.0, room), how=f"{how}; {per_token:,.0f} bytes a token")
    parts = [weights, cache] if gpu else [weights, cache, *_of_cpu_engine(config, shape)]
    return [part for part in parts if part.nbytes or part is cache], CacheRoom(
        nbytes=room, tokens=max(0.0, room) / per_token, longest=longest
    )


def _of_cpu_engine(config: Config, shape: ModelShape) -> list[Part]:
    generator = config.generator
    size, workers = _BYTES[generator.dtype], generator.tensor_parallel_size
    sequences = generator.max_sequences + 1  # a place is kept for the canary
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    tokens = min(_ENGINE_TOKENS, sequences * longest)
    values = shape.values_of_a_layer() // workers
    return [
        Part(name="process", nbytes=_ENGINE_PROCESS, how="vLLM, torch and transformers, imported; as measured"),
        _object_store(config, shape),
        Part(
            name="tied output head, packed",
            nbytes=shape.head * size / workers if shape.tied else 0,
            how=f"{_m(shape.head)} x {size}{_over(workers)}: linear layers have their packed copy alone",
        ),
        Part(
            name="largest pass: a layer",
            nbytes=tokens * values * size,
            how=f"{tokens} tokens x {values} values x {size}",
        ),
        Part(
            name="sampling",
            nbytes=_SAMPLER_COPIES * 4 * sequences * shape.vocabulary,
            how=f"{_SAMPLER_COPIES} x {sequences} sequences x {shape.vocabulary} words x 4",
        ),
    ]


def _object_store(config: Config, shape: ModelShape) -> Part:
    size = _BYTES[config.generator.dtype]
    return Part(
        name="object store: weight sets",
        nbytes=_WEIGHT_SETS * shape.parameters * size,
        how=f"{_WEIGHT_SETS} x {_m(shape.parameters)} x {size}, mapped by rank 0 and by engines: once on a node",
    )


def _share(learner: LearnerConfig, stage: int) -> int:
    """Ranks that share what ZeRO shares out from `stage` on."""
    return learner.ranks if learner.zero_stage >= stage else 1


def _m(count: float) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _over(shares: int) -> str:
    return f" / {shares}" if shares > 1 else ""
