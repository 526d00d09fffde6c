"""The least seconds that a step can take on given hardware: bounds by memory bandwidth, products and links.

Attention over other tokens, kernel launches and waiting are left out, so real steps take longer; docs/plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from funicular.actors.model_shape import ModelShape
from funicular.launch.config import Config
from funicular.launch.hardware import Hardware
from funicular.launch.plan_memory import CacheRoom, states_of_rank
from funicular.launch.plan_tokens import tokens_of_a_group

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens that a plan counts with, means over a batch."""

    prompt: float
    completion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Least seconds of one training step, by part."""

    completions: int
    """Of the training batch."""
    in_flight: float
    """Completions that one engine decodes at the same time."""
    decode_rate: float
    """Tokens per second of all engines together."""
    decode_is_bound_by: str
    """bandwidth or products."""
    generate_s: float
    learn_s: float
    learn_tokens: int
    """Of a step's passes, each once."""
    learn_tokens_unshared: int
    """What they would be with a prompt for each completion."""
    sync_s: float
    sync_bytes: float
    turns_s: float
    """In which learner ranks leave their devices and return to them; 0: they share them with nobody."""

    def step_s(self, max_staleness: int) -> float:
        """Of a step: one after the other in lockstep, generation beside learning otherwise."""
        if max_staleness == 0:
            return self.generate_s + self.learn_s + self.sync_s + self.turns_s
        return max(self.generate_s, self.learn_s) + self.sync_s


def bounds(
    config: Config, shape: ModelShape, hardware: Hardware, room: CacheRoom, lengths: Lengths, *, on_gpu: bool
) -> Bounds:
    """Bounds of one training step.

    Args:
        room: of one engine's KV cache, which limits the completions in flight.
        on_gpu: else nothing moves where turns are handed over.
    """
    algorithm, generator, learner = config.algorithm, config.generator, config.learner
    completions = algorithm.groups_per_step * algorithm.group_size
    size, workers = _BYTES[generator.dtype], generator.tensor_parallel_size
    context = lengths.prompt + lengths.completion / 2
    share = completions / generator.count
    in_flight = max(1.0, min(generator.max_sequences, share, room.tokens / (lengths.prompt + lengths.completion)))
    read = shape.parameters * size + in_flight * context * shape.cache_values * size
    by_bandwidth = read / (workers * hardware.bandwidth)
    by_products = 2 * shape.products * in_flight / (workers * hardware.flops)
    token_s = max(by_bandwidth, by_products)
    prefill_s = 2 * shape.products * algorithm.groups_per_step * lengths.prompt
    prefill_s /= generator.count * workers * hardware.flops
    of_group = tokens_of_a_group(config, round(lengths.prompt), round(lengths.completion))
    tokens = algorithm.groups_per_step * of_group.shared
    passes: float = (4 if learner.lora_rank else 6) + (2 if learner.gradient_checkpointing else 0)
    if algorithm.old_logprobs != "generator" and algorithm.optimizer_batches * algorithm.num_iterations > 1:
        passes += 2 / algorithm.num_iterations  # old log-probabilities have a forward pass of their own
    if algorithm.beta:
        passes += 2 / algorithm.num_iterations
    learn = passes * shape.products * tokens * algorithm.num_iterations
    sync_bytes = shape.parameters * size
    kept = states_of_rank(config, shape) if on_gpu and config.cluster.colocate else 0.0
    return Bounds(
        completions=completions,
        in_flight=in_flight,
        decode_rate=generator.count * in_flight / token_s,
        decode_is_bound_by="bandwidth" if by_bandwidth >= by_products else "products",
        generate_s=prefill_s + completions * lengths.completion * token_s / (generator.count * in_flight),
        learn_s=learn / (learner.ranks * hardware.flops),
        learn_tokens=tokens,
        learn_tokens_unshared=algorithm.groups_per_step * of_group.unshared,
        sync_s=2 * sync_bytes / hardware.host_link,  # from the learner to the host's memory, and to the engines
        sync_bytes=sync_bytes,
        turns_s=2 * kept / hardware.host_link,
    )
