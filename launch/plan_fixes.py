"""What would make a recipe fit: changes of a few keys, each tried with the plan's own sums before it is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from funicular.actors.config import LearnerConfig
from funicular.actors.model_shape import ModelShape
from funicular.launch.build import demand
from funicular.launch.config import Config
from funicular.launch.hardware import Hardware
from funicular.launch.plan_memory import engine_parts, learner_parts

_SHARES = (2, 4, 8, 16, 32, 64)
"""Ranks, and workers of an engine, that are tried."""
_LORA_RANK = 16
_PARTITIONED = ("adamw", "sgd")
"""Optimizers that ZeRO 1 to 3 can share out."""


def learner_fixes(config: Config, shape: ModelShape, memory: float, *, on_gpu: bool) -> list[str]:
    """Changes after each of which a learner rank fits into `memory` bytes, as `key=value` words, the gentlest first.

    The first number of ranks that suffices is named, and none above it.
    """
    return [
        named
        for named, changed in _changes(config, shape, memory, on_gpu=on_gpu)
        if _rank(config, changed, shape, on_gpu=on_gpu) <= memory
    ]


def _changes(config: Config, shape: ModelShape, memory: float, *, on_gpu: bool) -> Iterator[tuple[str, LearnerConfig]]:
    learner = config.learner
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing=true", replace(learner, gradient_checkpointing=True)
    longest = config.generator.max_prompt_tokens + config.generator.max_completion_tokens
    if (tokens := longest // learner.sequence_parallel) < learner.micro_batch_tokens:
        yield f"learner.micro_batch_tokens={tokens}", replace(learner, micro_batch_tokens=tokens)
    stage, named = learner.zero_stage, ""
    if learner.optimizer in _PARTITIONED and learner.quantization == "none" and stage < 3:
        stage, named = 3, "learner.zero_stage=3 "
    if named and learner.ranks > 1:
        yield named.strip(), replace(learner, zero_stage=stage)
    for ranks in _SHARES:
        changed = replace(learner, ranks=ranks, zero_stage=stage)
        beside = _beside(config, ranks, config.generator.tensor_parallel_size)
        if beside is not None and ranks > learner.ranks and _rank(config, changed, shape, on_gpu=on_gpu) <= memory:
            yield f"{named}learner.ranks={ranks}{beside}", changed
            break
    if on_gpu and stage:
        yield from _offloads(config, replace(learner, zero_stage=stage), shape, memory, named)
    if not learner.lora_rank:
        yield f"learner.lora_rank={_LORA_RANK}", replace(learner, lora_rank=_LORA_RANK)


def _beside(config: Config, ranks: int, workers: int) -> str | None:
    """What else must change for engines of so many workers to stand beside so many ranks; None: they cannot."""
    if not config.cluster.colocate:
        return ""
    return None if ranks % workers else f" generator.count={ranks // workers}"


def _offloads(
    config: Config, learner: LearnerConfig, shape: ModelShape, memory: float, named: str
) -> Iterator[tuple[str, LearnerConfig]]:
    """The optimizer's state on the host; where that is not enough, the parameters too."""
    optimizer = replace(learner, offload_optimizer="cpu")
    if learner.offload_optimizer == "none" and _rank(config, optimizer, shape, on_gpu=True) <= memory:
        yield f"{named}learner.offload_optimizer=cpu", optimizer
    elif learner.zero_stage == 3 and learner.offload_parameters == "none":
        both = replace(optimizer, offload_parameters="cpu")
        yield f"{named}learner.offload_optimizer=cpu learner.offload_parameters=cpu", both


def _rank(config: Config, learner: LearnerConfig, shape: ModelShape, *, on_gpu: bool) -> float:
    changed = replace(config, learner=learner)
    return sum(part.nbytes for part in learner_parts(changed, shape, on_gpu=on_gpu))


def engine_fix(config: Config, shape: ModelShape, gpu: Hardware, per_node: int) -> str | None:
    """The smallest tensor parallelism, within a node, with which one completion fits; None: none that divides the
    model's heads."""
    for workers in _SHARES:
        if not config.generator.tensor_parallel_size < workers <= per_node or shape.heads % workers:
            continue
        changed = replace(config, generator=replace(config.generator, tensor_parallel_size=workers))
        beside = _beside(config, config.learner.ranks, workers)
        if beside is not None and engine_parts(changed, shape, gpu)[1].completions:
            return f"generator.tensor_parallel_size={workers}{beside}"
    return None


def too_few(config: Config, gpus: int) -> str | None:
    """Why the recipe's parts do not fit on so many GPUs; None: they do."""
    asked = demand(config)
    if asked.gpus <= gpus:
        return None
    parts = ", ".join(f"{role} {count}" for role, count in sorted(asked.roles.items()))
    if gpus < len(asked.roles):
        remedy = f"{len(asked.roles)} are the least"
    else:
        remedy = "lower generator.count, generator.tensor_parallel_size or learner.ranks"
    if not config.cluster.colocate:
        remedy += "; or have learner and generators take turns on the same GPUs (cluster.colocate=true max_staleness=0)"
    return f"the parts take {asked.gpus} GPUs ({parts}) and there are {gpus}: {remedy}"
