"""The range of every number in a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Bounds of one key; a bound that is not given does not bind."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    why: str = ""

    def holds(self, value: float) -> bool:
        """Whether a value lies inside. Neither infinity nor NaN ever does."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.at_least),
                ("above", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            )
            if bound is not None
        ]
        text = " and ".join(bounds) if bounds else "a finite number"
        return f"{text}: {self.why}" if self.why else text


_COUNT = Range(at_least=1)
_MAYBE = Range(at_least=0)
_SECONDS = Range(above=0, why="seconds; a wait without a deadline could last for ever")
_DECAY = Range(at_least=0, below=1)

RANGES: dict[str, Range] = {
    "seed": _MAYBE,
    "max_steps": _MAYBE,
    "max_staleness": _MAYBE,
    "max_empty_batches": _COUNT,
    "data.held_out_fraction": _DECAY,
    "data.size": Range(at_least=2, why="some tasks to train on and some to hold out"),
    "data.needle_words": Range(at_least=20, why="a haystack, and not only needles"),
    "data.needle_count": _COUNT,
    "data.needle_distractors": _MAYBE,
    "reward.scorers": _COUNT,
    "reward.health_tasks": _MAYBE,
    "reward.time_limit_s": _SECONDS,
    "reward.network_time_limit_s": _SECONDS,
    "reward.memory_mib": Range(at_least=64),
    "reward.max_consecutive_errors": _COUNT,
    "sandbox.slots": _MAYBE,
    "sandbox.queue": _MAYBE,
    "sandbox.cpu_s": Range(above=0, at_most=3600),
    "sandbox.submission_s": _SECONDS,
    "sandbox.memory_mib": Range(at_least=16, why="less holds no interpreter's own objects"),
    "sandbox.processes": _COUNT,
    "sandbox.output_kib": _COUNT,
    "sandbox.disk_mib": _COUNT,
    "sandbox.deadline_s": _SECONDS,
    "sandbox.recycle_after": _COUNT,
    "generator.count": _COUNT,
    "generator.tensor_parallel_size": _COUNT,
    "generator.max_prompt_tokens": _COUNT,
    "generator.max_completion_tokens": _COUNT,
    "generator.min_completion_tokens": _MAYBE,
    "generator.stop_repetition_count": _MAYBE,
    "generator.stop_repetition_tokens": Range(at_least=1, at_most=1024, why="each new token is compared that often"),
    "generator.temperature": Range(
        above=0, why="training needs completions that differ; evaluation.temperature may be 0"
    ),
    "generator.max_sequences": _COUNT,
    "generator.kv_cache_gib": Range(above=0),
    "generator.gpu_memory_fraction": Range(above=0, at_most=1),
    "generator.cpu_threads": _MAYBE,
    "generator.start_deadline_s": _SECONDS,
    "generator.progress_deadline_s": _SECONDS,
    "algorithm.group_size": _COUNT,
    "algorithm.groups_per_step": _COUNT,
    "algorithm.optimizer_batches": _COUNT,
    "algorithm.num_iterations": _COUNT,
    "algorithm.epsilon_low": Range(above=0, below=1),
    "algorithm.epsilon_high": Range(above=0),
    "algorithm.delta": Range(above=1),
    "algorithm.beta": _MAYBE,
    "algorithm.reference_refresh_steps": _MAYBE,
    "algorithm.reference_mixup": Range(above=0, at_most=1, why="with 0 a refresh would change nothing"),
    "algorithm.importance_cap": Range(
        at_least=1,
        why="below 1 it would shrink tokens on which generator and learner agree; null turns it off",
    ),
    "algorithm.importance_floor": Range(
        at_least=0, at_most=1, why="above 1 it would swell tokens on which generator and learner agree"
    ),
    "algorithm.geometric_floor": Range(above=0, at_most=1),
    "algorithm.geometric_cap": Range(at_least=1),
    "algorithm.ratio_cap": Range(above=0),
    "algorithm.sapo_tau_positive": Range(above=0),
    "algorithm.sapo_tau_negative": Range(above=0),
    "algorithm.vespo_k_positive": _MAYBE,
    "algorithm.vespo_lambda_positive": _MAYBE,
    "algorithm.vespo_k_negative": _MAYBE,
    "algorithm.vespo_lambda_negative": _MAYBE,
    "algorithm.off_policy_threshold": _MAYBE,
    "algorithm.top_entropy_quantile": Range(above=0, at_most=1),
    "algorithm.entropy_coef": _MAYBE,
    "algorithm.entropy_target": _MAYBE,
    "algorithm.beta_reward_min": Range(),
    "algorithm.beta_reward_max": Range(),
    "algorithm.max_replacements": _MAYBE,
    "learner.ranks": _COUNT,
    "learner.zero_stage": Range(at_least=0, at_most=3),
    "learner.learning_rate": _MAYBE,
    "learner.warmup_steps": _MAYBE,
    "learner.decay_steps": _MAYBE,
    "learner.min_lr_ratio": Range(at_least=0, at_most=1),
    "learner.adam_beta1": _DECAY,
    "learner.adam_beta2": _DECAY,
    "learner.momentum": _DECAY,
    "learner.weight_decay": _MAYBE,
    "learner.max_grad_norm": _MAYBE,
    "learner.micro_batch_tokens": _COUNT,
    "learner.sequence_parallel": _COUNT,
    "learner.lora_rank": _MAYBE,
    "learner.lora_alpha": Range(above=0),
    "learner.cpu_threads": _MAYBE,
    "learner.start_deadline_s": _SECONDS,
    "learner.step_deadline_s": _SECONDS,
    "distillation.coef": _MAYBE,
    "distillation.reward_coef": _MAYBE,
    "distillation.jsd_beta": Range(at_least=0, at_most=1),
    "distillation.temperature": Range(above=0),
    "distillation.count": _COUNT,
    "distillation.tensor_parallel_size": _COUNT,
    "distillation.max_sequences": _COUNT,
    "distillation.max_batch_tokens": _COUNT,
    "distillation.kv_cache_gib": Range(above=0),
    "distillation.gpu_memory_fraction": Range(above=0, at_most=1),
    "distillation.cpu_threads": _MAYBE,
    "distillation.start_deadline_s": _SECONDS,
    "distillation.progress_deadline_s": _SECONDS,
    "weight_sync.bucket_mib": _COUNT,
    "weight_sync.columns": _COUNT,
    "weight_sync.canary_tokens": Range(at_least=2, why="the first token of the text has no log-probability to compare"),
    "weight_sync.canary_tolerance": Range(above=0),
    "weight_sync.attempts": _COUNT,
    "weight_sync.deadline_s": _SECONDS,
    "evaluation.tasks": _MAYBE,
    "evaluation.every": _MAYBE,
    "evaluation.temperature": _MAYBE,
    "checkpoint.every": _MAYBE,
    "checkpoint.keep_last": _COUNT,
    "checkpoint.keep_best": _MAYBE,
    "checkpoint.deadline_s": _SECONDS,
    "tracking.completions_every": _MAYBE,
    "tracking.completions_rows": _COUNT,
    "tracking.traces_per_step": _MAYBE,
    "cluster.object_store_gib": Range(above=0),
    "cluster.room_deadline_s": _SECONDS,
    "cluster.sandbox_places": _MAYBE,
    "cluster.buffer_deadline_s": _SECONDS,
    "cluster.max_restarts": _MAYBE,
    "cluster.stall_deadline_s": _SECONDS,
}
"""Every int and float of the schema; a test keeps it complete."""
