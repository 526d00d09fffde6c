"""What a recipe says about a teacher, and what follows from it. Imports nothing heavy.

The text under each field is what `funicular config keys` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Section `distillation`. Formulas, and which loss for what: docs/distillation.md."""

    teacher: str | None = None
    """A folder, a hub id or smollm2-135m, with the student's tokenizer; null: no distillation, nothing is started."""
    loss: Literal["reverse_kl", "jsd", "forward_kl", "hard"] = "reverse_kl"
    """reverse_kl: on each token that the student sampled, log-probability of the teacher minus the student's, as an
    advantage (on-policy distillation). jsd: the generalised Jensen-Shannon divergence of the whole distributions (GKD);
    forward_kl: KL(teacher || student) of them (soft targets). For these two the teacher stands in each learner rank.
    hard: minus the log-probability of given completions (data.completion_column), without a teacher.
    """
    jsd_beta: float = 0.5
    """jsd: weight of the teacher in the mixture, from 0, which is forward_kl, to 1, which is KL(student || teacher)."""
    temperature: float | None = None
    """jsd and forward_kl: what both sides' logits are divided by; null: generator.temperature, and 1 with given
    completions."""
    coef: float = 1.0
    """Weight of the distillation term."""
    reward_coef: float = 0.0
    """What advantages from rewards are multiplied by, before the distillation term is added. 0: the teacher alone
    teaches, and rewards are only reported."""
    count: int = 1
    """reverse_kl: teacher engines, each an actor of its own. So the keys below but dtype."""
    tensor_parallel_size: int = 1
    """Workers that share one teacher engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the teacher's weights and arithmetic; auto: generator.dtype, in learner ranks learner.compute_dtype."""
    max_sequences: int = 32
    """Completions that one teacher engine scores at the same time."""
    max_batch_tokens: int = 2048
    """Tokens that one teacher engine runs through its model at once; their logits all exist at the same time."""
    kv_cache_gib: float = 1.0
    """KV cache of one teacher engine on CPU, GiB."""
    gpu_memory_fraction: float = 0.85
    """Part of the GPU's memory that a teacher engine takes (GPU only)."""
    cpu_threads: int = 0
    """OpenMP threads of each teacher engine's worker on CPU; 0: all cores divided by tensor_parallel_size."""
    start_deadline_s: float = 900.0
    """Seconds within which a teacher engine must have started."""
    progress_deadline_s: float = 300.0
    """Seconds in which a teacher engine with work scored no completion at all, after which it counts as hung."""


def distils(config: DistillationConfig) -> bool:
    """Whether anything is learnt from a teacher, or from completions that it may have written."""
    return config.teacher is not None or learns_given_tokens(config)


def learns_given_tokens(config: DistillationConfig) -> bool:
    """Whether given completions themselves are the target."""
    return config.loss == "hard"


def teacher_scores_samples(config: DistillationConfig) -> bool:
    """Whether teachers are started that score the tokens which the student sampled."""
    return config.teacher is not None and config.loss == "reverse_kl"


def teacher_in_ranks(config: DistillationConfig) -> bool:
    """Whether each learner rank has the teacher's model, because the loss needs whole distributions."""
    return config.teacher is not None and config.loss in ("jsd", "forward_kl")


def divergence_beta(config: DistillationConfig) -> float:
    """Which of the generalised Jensen-Shannon divergences a rank's teacher is compared by."""
    return config.jsd_beta if config.loss == "jsd" else 0.0


def reward_factor(config: DistillationConfig) -> float:
    """What advantages from rewards are multiplied by; 0: they are not even taken."""
    return config.reward_coef if distils(config) else 1.0
