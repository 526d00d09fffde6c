"""What a recipe says about generators, learner, algorithm and weight sync. Imports nothing heavy.

The text under each field is what `funicular config keys` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Section `generator`."""

    count: int = 1
    """Number of generators; each owns one vLLM engine."""
    tensor_parallel_size: int = 1
    """Workers that share one engine's weights. On CPU they are processes of the same node."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the engine's weights and arithmetic, and of weights on the wire."""
    max_prompt_tokens: int = 512
    """A task whose rendered prompt is longer is dropped with a reason."""
    max_completion_tokens: int = 256
    """Where a completion is cut; the constant of dr_grpo's aggregation."""
    temperature: float = 1.0
    """Sampling temperature, applied to log-probabilities on the learner's side too."""
    max_sequences: int = 64
    """Completions that one engine decodes at the same time."""
    kv_cache_gib: float = 1.0
    """KV cache of one engine on CPU, GiB."""
    gpu_memory_fraction: float = 0.85
    """Part of the GPU's memory that an engine takes (GPU only)."""
    cpu_threads: int = 0
    """OpenMP threads of each engine worker on CPU; 0: all cores divided by tensor_parallel_size."""
    cache_in_flight: Literal["recompute", "keep"] = "recompute"
    """KV cache of running requests when weights change. `keep` is faster, but the log-probabilities of tokens
    after the change can be reproduced by no learner."""
    start_deadline_s: float = 900.0
    """Seconds within which an engine must have started."""
    progress_deadline_s: float = 300.0
    """Seconds without one new token after which a group's request counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """Section `algorithm`. Formulas: docs/algorithms.md."""

    loss: Literal["grpo", "dr_grpo", "bnpo"] = "grpo"
    """Preset: grpo = PPO-clip, `sequence`, advantages divided by the group's std; dr_grpo = `constant`, centred
    only; bnpo = `token` over the optimizer batch, group std."""
    aggregation: Literal["auto", "sequence", "token", "constant"] = "auto"
    """How per-token losses become one number; auto: the preset's."""
    scale_rewards: Literal["auto", "group", "batch", "none"] = "auto"
    """What a centred reward is divided by: the group's std, the batch's std, nothing; auto: the preset's."""
    group_size: int = 8
    """G: completions per task, at least 2."""
    groups_per_step: int = 8
    """Rollout groups in one training batch, which makes one policy version."""
    optimizer_batches: int = 1
    """Optimizer steps that a training batch is cut into, by whole groups."""
    epsilon_low: float = 0.2
    """Lower clip: the ratio is clipped at 1 - epsilon_low."""
    epsilon_high: float = 0.2
    """Upper clip: the ratio is clipped at 1 + epsilon_high."""
    delta: float | None = None
    """Two-sided clip: the ratio of negative advantages is capped at delta > 1 + epsilon_high (INTELLECT-2)."""
    beta: float = 0.0
    """Weight of the KL term in the loss; 0 loads no reference policy."""
    kl_estimator: Literal["k3", "k3_unbiased"] = "k3"
    """k3 (DeepSeekMath), or the ratio times k3 (DeepSeek-V3.2 eq. 7), whose gradient is the reverse KL's."""
    importance_cap: float | None = 2.0
    """Truncated importance sampling: each token's term is weighted by min(learner/generator probability, cap);
    null: no weight."""
    mask_truncated_completions: bool = False
    """Take completions cut at max_completion_tokens out of the loss (their rewards stay in the baseline)."""
    zero_variance_groups: Literal["keep", "replace"] = "keep"
    """Groups whose rewards are all equal: train with advantage 0, or replace by a new task (dynamic sampling)."""
    max_replacements: int = 4
    """Further tries of a slot, for failures and for groups without variance together, before it is filled empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """Section `learner`."""

    ranks: int = 1
    """DeepSpeed ranks, one Ray actor each, data parallel."""
    zero_stage: int = 0
    """ZeRO stage, 0 to 3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters; bfloat16 keeps float32 master weights in the optimizer."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products; bfloat16 over float32 parameters is autocast."""
    head_dtype: Literal["auto", "float32"] = "auto"
    """Type of the output head's products; auto: compute_dtype. float32 costs time and no memory."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """torch.optim class."""
    learning_rate: float = 1e-6
    """After warm-up; constant."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    adam_beta1: float = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: float = 0.999
    """AdamW's second-moment decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped to this; 0: not clipped."""
    micro_batch_tokens: int = 4096
    """Padded tokens (rows x longest row) of one forward and backward pass; gradients accumulate over passes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    lora_rank: int = 0
    """LoRA rank; 0: full fine-tuning."""
    lora_alpha: float = 32.0
    """LoRA scaling numerator (alpha / rank)."""
    lora_targets: str = "all-linear"
    """Modules that get adapters: all-linear, or names separated by commas."""
    cpu_threads: int = 0
    """OpenMP threads of each rank on CPU; 0: all cores divided by ranks."""
    start_deadline_s: float = 900.0
    """Seconds within which the ranks must have started."""
    step_deadline_s: float = 3600.0
    """Seconds within which a training step must end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSyncConfig:
    """Section `weight_sync`."""

    bucket_mib: int = 64
    """Weights are gathered and sent in buckets of about this size; a decoder layer is never split."""
    columns: int = 8
    """Columns of each weight matrix that generators read back from what they use, new ones at every sync."""
    canary_tokens: int = 32
    """Length of the text whose log-probabilities learner and generator must agree on before a commit."""
    canary_tolerance: float | None = None
    """Largest mean absolute difference, nats; null: 1e-3 in float32, 0.2 in bfloat16."""
    attempts: int = 2
    """Sends of a version to one generator before it is rebuilt."""
    deadline_s: float = 300.0
    """Seconds within which one generator must have loaded, verified and committed."""
