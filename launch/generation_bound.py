"""The time that generation takes at least: what must be read from memory, and what must be multiplied."""

from __future__ import annotations

from dataclasses import dataclass

from funicular.actors.benched_engine import Limits, Round, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Seconds of one round, at least."""

    prefill_s: float
    """Prompts, each task's once: their products, or reading the weights once."""
    memory_s: float
    """Decoding: at each step every weight is read once, and the keys and values of all that stands before."""
    arithmetic_s: float
    """Decoding: two operations for each parameter and token."""

    @property
    def seconds(self) -> float:
        """Memory and arithmetic can overlap: the longer counts."""
        return self.prefill_s + max(self.memory_s, self.arithmetic_s)

    @property
    def binding(self) -> str:
        """What decoding is held up by."""
        return "memory" if self.memory_s >= self.arithmetic_s else "arithmetic"


def bound_of(done: Round, size: Size, limits: Limits) -> Bound:
    """The bound of a round.

    The first token of each sequence comes of the prefill; `steps` more follow, each of all sequences.
    """
    parameters = size.body_parameters + size.head_parameters
    weights_s = parameters * size.parameter_bytes / limits.bytes_per_s
    steps = done.tokens - 1
    per_task = done.sequences // len(done.prompt_tokens)
    read_before = sum(per_task * (steps * prompt + steps * (steps + 1) // 2) for prompt in done.prompt_tokens)
    prefill = 2 * (size.body_parameters * sum(done.prompt_tokens) + size.head_parameters * done.sequences)
    return Bound(
        prefill_s=max(weights_s, prefill / limits.flops_per_s),
        memory_s=steps * weights_s + read_before * size.cache_bytes_per_token / limits.bytes_per_s,
        arithmetic_s=2 * parameters * steps * done.sequences / limits.flops_per_s,
    )
