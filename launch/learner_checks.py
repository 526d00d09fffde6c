"""Rules between the keys of `learner`, and of the reference policy and passes in `algorithm`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.model_config import model_config
from funicular.launch.problems import Problem

_WHOLE_MATRICES = ("adafactor", "muon")


def learner_problems(config: Config) -> Iterator[Problem]:
    """What makes the learner impossible."""
    yield from _precision(config)
    yield from _memory(config)
    yield from _adapters(config)
    yield from _sharing(config)


def learner_warnings(config: Config) -> Iterator[Problem]:
    """What the learner does, but probably not as it was meant."""
    learner, algorithm = config.learner, config.algorithm
    if learner.momentum is not None and learner.optimizer not in ("sgd", "muon"):
        expected = f"{learner.optimizer} has no momentum of this kind"
        yield problem_at(config, "learner.momentum", expected, "Set it to null", "learner.optimizer")
    if learner.offload_activations and not config.cluster.use_gpu:
        expected = "without GPUs activations are in the host's memory anyway; they would be copied there once more"
        yield problem_at(config, "learner.offload_activations", expected, "Set it to false", "cluster.use_gpu")
    if learner.share_prefix == "on" and not learner.packing:
        expected = "padded rows have a prompt each: nothing is shared"
        yield problem_at(config, "learner.share_prefix", expected, "Set learner.packing=true", "learner.packing")
    if learner.schedule == "constant":
        for key, value in (
            ("learner.decay_steps", learner.decay_steps),
            ("learner.min_lr_ratio", learner.min_lr_ratio),
        ):
            if value:
                expected = "the schedule is constant: nothing decays"
                yield problem_at(config, key, expected, "Set learner.schedule=cosine or linear", "learner.schedule")
    total = config.max_steps * algorithm.optimizer_batches * algorithm.num_iterations
    if 0 < total < learner.warmup_steps:
        expected = f"the run has {total} optimizer steps: warm-up never ends"
        yield problem_at(config, "learner.warmup_steps", expected, "Write fewer, or raise max_steps", "max_steps")
    if algorithm.reference_refresh_steps and algorithm.beta == 0:
        expected = "with algorithm.beta=0 there is no reference policy"
        key = "algorithm.reference_refresh_steps"
        yield problem_at(config, key, expected, "Set algorithm.beta above 0", "algorithm.beta")


def _precision(config: Config) -> Iterator[Problem]:
    learner = config.learner
    if learner.dtype == "bfloat16" and learner.compute_dtype == "float32":
        expected = "parameters in bfloat16 are not multiplied in float32"
        nearest = "Set learner.compute_dtype=bfloat16, or learner.dtype=float32"
        yield problem_at(config, "learner.compute_dtype", expected, nearest, "learner.dtype")
    if learner.dtype == "bfloat16" and learner.zero_stage == 0:
        expected = "DeepSpeed would sum gradients in bfloat16: expected 1, 2 or 3 with learner.dtype=bfloat16"
        yield problem_at(config, "learner.zero_stage", expected, "Set learner.zero_stage=1", "learner.dtype")


def _memory(config: Config) -> Iterator[Problem]:
    learner = config.learner
    if learner.optimizer in _WHOLE_MATRICES and learner.zero_stage > 0:
        expected = f"it looks at whole matrices, and ZeRO stage {learner.zero_stage} would give it flat pieces of them"
        nearest = "Set learner.zero_stage=0, or learner.optimizer=adamw"
        yield problem_at(config, "learner.optimizer", expected, nearest, "learner.zero_stage")
    if learner.offload_optimizer != "none" and learner.zero_stage == 0:
        expected = "without ZeRO nothing is offloaded: expected learner.zero_stage=1, 2 or 3"
        yield problem_at(config, "learner.offload_optimizer", expected, "", "learner.zero_stage")
    if learner.offload_parameters != "none" and learner.zero_stage < 3:
        expected = f"ZeRO stage {learner.zero_stage} keeps every parameter on the device: expected learner.zero_stage=3"
        yield problem_at(config, "learner.offload_parameters", expected, "", "learner.zero_stage")
    if learner.offload_activations and not learner.gradient_checkpointing:
        expected = "without checkpointed layers every activation would go to the host and back: expected false"
        nearest = "Set learner.gradient_checkpointing=true"
        yield problem_at(config, "learner.offload_activations", expected, nearest, "learner.gradient_checkpointing")


def _adapters(config: Config) -> Iterator[Problem]:
    learner, algorithm = config.learner, config.algorithm
    if learner.lora_rank and not all(target.strip() for target in learner.lora_targets.split(",")):
        expected = "expected all-linear, or names of modules separated by commas"
        yield problem_at(config, "learner.lora_targets", expected, "", "learner.lora_rank")
    if learner.lora_rank and "lm_head" in re.split(r"[\s,.]+", learner.lora_targets):
        expected = "the output head takes no adapters: the learner multiplies it tile by tile"
        yield problem_at(config, "learner.lora_targets", expected, "all-linear leaves it out", "learner.lora_rank")
    if not learner.lora_rank:
        for key, unset in (("adapter", "lora"), ("lora_rslora", False), ("quantization", "none")):
            if getattr(learner, key) != unset:
                expected = "learner.lora_rank=0 trains all weights, without adapters"
                yield problem_at(config, f"learner.{key}", expected, "Set learner.lora_rank=16", "learner.lora_rank")
    elif learner.quantization != "none" and learner.zero_stage == 3:
        expected = "ZeRO-3 would partition packed weights of 4 bits: expected learner.zero_stage=0, 1 or 2"
        yield problem_at(config, "learner.quantization", expected, "Set learner.zero_stage=2", "learner.zero_stage")
    if learner.quantization != "none" and find_spec("bitsandbytes") is None:
        expected = "the package bitsandbytes is not installed here; no lock has it"
        nearest = "pip install bitsandbytes on every node, or set learner.quantization=none"
        yield problem_at(config, "learner.quantization", expected, nearest)
    if learner.lora_rank and algorithm.reference_mixup < 1:
        expected = "adapters are two factors, and a mixture of factors is not the factors of the mixture: expected 1"
        key = "algorithm.reference_mixup"
        yield problem_at(config, key, expected, "Set algorithm.reference_mixup=1", "learner.lora_rank")


def _sharing(config: Config) -> Iterator[Problem]:
    learner, size = config.learner, config.learner.sequence_parallel
    if size <= 1:
        return
    if learner.ranks % size:
        expected = f"expected a divisor of learner.ranks={learner.ranks}: groups of ranks share passes"
        nearest = f"Set learner.ranks={size * -(-learner.ranks // size)}"
        yield problem_at(config, "learner.sequence_parallel", expected, nearest, "learner.ranks")
    if not learner.packing:
        expected = "only packed rows are shared between ranks"
        yield problem_at(config, "learner.packing", expected, "Set learner.packing=true", "learner.sequence_parallel")
    heads = _attention_heads(config)
    if heads is not None and heads % size:
        expected = f"expected a divisor of the model's {heads} attention heads"
        yield problem_at(config, "learner.sequence_parallel", expected, "", "model.path")


def _attention_heads(config: Config) -> int | None:
    """What a local model's configuration says; None: nothing here. The learner looks again when it has the model."""
    heads = model_config(config.model.path).get("num_attention_heads")
    return heads if isinstance(heads, int) else None
