"""What a recipe says about generators, learner, algorithm and weight sync. Imports nothing heavy.

The text under each field is what `funicular config keys` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Section `generator`."""

    count: int = 1
    """Number of generators; each owns one vLLM engine."""
    tensor_parallel_size: int = 1
    """Workers that share one engine's weights. On CPU they are processes of the same node."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of the engine's weights and arithmetic, and of weights on the wire. auto: bfloat16 where the machine that
    reads the recipe multiplies it faster (GPU, AMX, AMD's AVX512-BF16, Arm's bf16), else float32."""
    head_dtype: Literal["auto", "float32"] = "auto"
    """Type of the output head's products; auto: dtype. float32 belongs with learner.head_dtype=float32."""
    max_prompt_tokens: int = 512
    """A task whose rendered prompt is longer is dropped with a reason."""
    max_completion_tokens: int = 256
    """Where a completion is cut; the constant of dr_grpo's aggregation."""
    min_completion_tokens: int = 0
    """No completion ends before; until then what would end it is not sampled, which the importance weight accounts
    for (docs/generation.md)."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion, besides the model's end-of-sequence token. Their tokens stay in it."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Token ids that end a completion, besides the model's own. They stay in it."""
    stop_repetition_count: int = 0
    """A completion that ends in the same tokens this many times in a row is stopped, as truncated; 0: never."""
    stop_repetition_tokens: int = 32
    """Longest repeated passage that stop_repetition_count looks for, tokens."""
    temperature: float = 1.0
    """Sampling temperature, applied to log-probabilities on the learner's side too."""
    request_seeds: bool = False
    """Seed each completion by run, task, slot and try, so that it does not depend on which generator makes it, nor on
    what else that one does. Slower sampling in large batches."""
    max_sequences: int = 64
    """Completions that one engine decodes at the same time."""
    kv_cache_gib: float = 1.0
    """KV cache of one engine on CPU, GiB."""
    gpu_memory_fraction: float = 0.85
    """Part of the GPU's memory that an engine takes (GPU only)."""
    cpu_threads: int = 0
    """OpenMP threads of each engine worker on CPU; 0: all cores divided by tensor_parallel_size."""
    engine_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs by name, such as {enable_prefix_caching: false}. What would falsify
    log-probabilities or weight sync is refused (docs/generation.md)."""
    update_mode: Literal["in_flight", "finish_first", "start_again"] = "in_flight"
    """What running completions do when weights change: go on with the new ones; finish on the old ones, for which
    weight_sync.deadline_s must suffice; or begin anew."""
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

    loss: Literal[
        "grpo",
        "dr_grpo",
        "bnpo",
        "dapo",
        "luspo",
        "gspo",
        "gspo_token",
        "cispo",
        "scalerl",
        "sapo",
        "vespo",
        "gmpo",
        "rloo",
        "reinforce",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "opo",
        "beta_normalization",
    ] = "grpo"
    """Preset for every key below that says auto or null. docs/algorithms.md has the table."""
    objective: Literal["auto", "ppo_clip", "cispo", "sapo", "vespo", "gmpo", "reinforce"] = "auto"
    """What is maximised for each token; auto: the preset's."""
    ratio_level: Literal["auto", "token", "sequence", "sequence_token", "sequence_sum"] = "auto"
    """Importance ratio: of each token; geometric mean over the completion (GSPO); the same with a token's gradient
    (GSPO-token); product over the completion (RLOO). auto: the preset's."""
    aggregation: Literal["auto", "sequence", "token", "constant", "sequence_sum", "prompt"] = "auto"
    """How per-token losses become one number: mean of completions' means; mean over tokens; sum over completions *
    max_completion_tokens; mean of completions' sums; mean of tasks' token means. auto: the preset's."""
    baseline: Literal["auto", "mean", "leave_one_out", "length_weighted", "beta", "none"] = "auto"
    """What a reward is compared with: the group's mean, the mean of the others (RLOO), the mean weighted by length
    (OPO), the mean and a Beta-normaliser (the BNPO paper), nothing. auto: the preset's."""
    scale_rewards: Literal["auto", "group", "batch", "batch_centred", "none"] = "auto"
    """What a centred reward is divided by: the group's std, the std of the batch's rewards, the std of the batch's
    centred rewards (ScaleRL), nothing; auto: the preset's."""
    whiten_advantages: Literal["auto", "none", "completions", "tokens"] = "auto"
    """Subtract the batch's mean from advantages and divide by its std, each completion or each trained token counting
    once (REINFORCE++: tokens); auto: the preset's."""
    several_rewards: Literal["sum_then_normalize", "normalize_then_sum", "average_advantages"] = "sum_then_normalize"
    """With several reward functions: advantages of the weighted sum; weighted sum of each function's z-scores, then
    whitened (GDPO); or the mean of each function's advantages (the BNPO paper)."""
    beta_reward_min: float = 0.0
    """baseline=beta: smallest possible reward, of each function where several are averaged."""
    beta_reward_max: float = 1.0
    """baseline=beta: largest possible reward."""
    group_size: int = 8
    """G: completions per task, at least 2."""
    groups_per_step: int = 8
    """Rollout groups in one training batch, which makes one policy version."""
    optimizer_batches: int = 1
    """Optimizer steps that a training batch is cut into, by whole groups."""
    num_iterations: int = 1
    """Passes over the training batch, each of optimizer_batches optimizer steps: mu of the GRPO paper. Old
    log-probabilities are those before the first step of the first pass."""
    epsilon_low: float | None = None
    """Lower clip: the ratio is clipped at 1 - epsilon_low; null: the preset's (0.2 for grpo)."""
    epsilon_high: float | None = None
    """Upper clip: the ratio is clipped at 1 + epsilon_high; null: the preset's (0.2 for grpo, 0.28 for dapo)."""
    delta: float | None = None
    """Two-sided clip: the ratio of negative advantages is capped at delta > 1 + epsilon_high (INTELLECT-2); null: the
    preset's, which is none but for beta_normalization (10)."""
    ratio_cap: float = 5.0
    """cispo: the detached ratio is capped here, an absolute value (ScaleRL: 4 to 8 are alike)."""
    sapo_tau_positive: float = 1.0
    """sapo: temperature of the soft gate where the advantage is positive."""
    sapo_tau_negative: float = 1.05
    """sapo: temperature of the soft gate elsewhere."""
    vespo_k_positive: float = 2.0
    """vespo: power of the weight where the advantage is not negative."""
    vespo_lambda_positive: float = 3.0
    """vespo: decay of the weight there."""
    vespo_k_negative: float = 3.0
    """vespo: power of the weight where the advantage is negative."""
    vespo_lambda_negative: float = 2.0
    """vespo: decay of the weight there."""
    beta: float = 0.0
    """Weight of the KL term; 0 loads no reference policy."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_unbiased"] = "k3"
    """k1 (only in a reward), k2, k3 (DeepSeekMath), or the ratio times k3 (DeepSeek-V3.2 eq. 7), whose gradient is the
    reverse KL's."""
    reference_refresh_steps: int = 0
    """Training steps between refreshes of the reference policy (TR-DPO); 0: it stays the initial policy."""
    reference_mixup: float = 1.0
    """Part of the policy in a refreshed reference policy: reference <- mixup policy + (1 - mixup) reference."""
    kl_in: Literal["loss", "reward", "token_reward"] = "loss"
    """loss: added to each token's loss. reward: k1 summed over the completion is taken from its reward before the
    baseline (RLOO). token_reward: taken from each token's reward, and advantages are returns to go (REINFORCE++)."""
    old_logprobs: Literal["auto", "learner", "generator"] = "auto"
    """Denominator of the importance ratio: the learner's own log-probabilities before the step, or the generator's
    (bypass: one ratio for staleness and mismatch, one forward pass less, no importance correction); auto: the preset's,
    which is the learner's but for scalerl."""
    importance_correction: Literal[
        "auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"
    ] = "auto"
    """Weight for the mismatch of generator and learner: each token's probability ratio clipped to floor and cap; or
    0 outside them; the same for the product over a completion; or whole completions masked by the geometric mean of
    their ratios, and tokens truncated at importance_cap. auto: token_truncate, or none where old_logprobs is
    generator."""
    importance_cap: float | None = 2.0
    """Upper bound of the weight; null: none."""
    importance_floor: float | None = None
    """Lower bound of the weight; null: none."""
    geometric_floor: float = 0.999
    """geometric_mask: completions whose mean ratio is below are masked."""
    geometric_cap: float = 1.001
    """geometric_mask: completions whose mean ratio is above are masked."""
    off_policy_threshold: float | None = None
    """Completions with a negative advantage whose mean log-ratio generator over policy exceeds this leave the policy
    term (DeepSeek-V3.2 eq. 9; 0.5 is a start); null: none do."""
    top_entropy_quantile: float = 1.0
    """Only this part of the optimizer batch's tokens, those of highest entropy, is in the policy term (0.2 in the
    paper); 1: all."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus: the mean entropy over the optimizer batch's tokens, taken from the loss."""
    entropy_target: float | None = None
    """Nats: entropy_coef rises by 0.005 after steps whose entropy is at most this, falls after others, and acts only
    while the last step's was at most this (Skywork-OR1: 0.2); null: it is constant."""
    mask_truncated_completions: bool = False
    """Take completions that were cut (max_completion_tokens, stop_repetition_count) out of the loss; their rewards stay
    in the baseline."""
    zero_variance_groups: Literal["auto", "keep", "drop", "replace"] = "auto"
    """Groups whose rewards are all equal: keep (advantage 0, and they count in what the loss is divided by), drop (they
    do not count; ScaleRL), or replace by a new task until the batch is full (dynamic sampling, DAPO); auto: the
    preset's, which is keep but for scalerl."""
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
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of matrix products; bfloat16 over float32 parameters is autocast. auto: as generator.dtype's."""
    head_dtype: Literal["auto", "float32"] = "auto"
    """Type of the output head's products; auto: compute_dtype. float32 costs time and no memory."""
    optimizer: Literal["adamw", "sgd", "adafactor", "muon"] = "adamw"
    """torch.optim class. adafactor and muon look at whole matrices: zero_stage 0 only. muon updates the matrices of
    hidden layers, AdamW with the same learning rate the rest."""
    learning_rate: float = 1e-6
    """Highest learning rate, reached after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up, over the max_steps x optimizer_batches x num_iterations optimizer steps."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up; the first has learning_rate / warmup_steps."""
    decay_steps: int = 0
    """Last optimizer steps, over which linear and cosine decay; before them the rate is constant. 0: all after
    warm-up."""
    min_lr_ratio: float = 0.0
    """Where linear and cosine end: part of learning_rate."""
    adam_beta1: float = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: float = 0.999
    """AdamW's second-moment decay."""
    momentum: float | None = None
    """Momentum of sgd and muon; null: 0 for sgd, 0.95 (Nesterov) for muon."""
    weight_decay: float = 0.0
    """Weight decay of matrices, decoupled but for sgd. Biases, norms and DoRA magnitudes are never decayed."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped to this; 0: not clipped."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where ZeRO keeps optimizer state and master weights, and updates: the device, or its host's memory."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Where ZeRO-3 keeps parameters (the reference policy's too) between their uses."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward pass, padded ones (rows x longest row) if not packed; gradients accumulate
    over passes."""
    packing: bool = True
    """Rows lie one after the other in a pass, without padding. A model that cannot is trained on padded rows."""
    share_prefix: Literal["auto", "on", "off"] = "auto"
    """A pass computes a group's prompt once for all completions of the group that are in it; auto: of groups for which
    that saves a tenth of the tokens. Needs packing. A model that cannot is trained on rows with a prompt each."""
    sequence_parallel: int = 1
    """Ranks that share the tokens of each pass, for rows too long for one (Ulysses, arXiv 2309.14509). It divides ranks
    and the model's attention heads; a pass has micro_batch_tokens for each of them."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    offload_activations: bool = False
    """Keep the inputs of checkpointed layers in the host's memory until the backward pass (GPU)."""
    lora_rank: int = 0
    """Rank of the adapters; 0: full fine-tuning."""
    lora_alpha: float = 32.0
    """Scaling numerator of the adapters (alpha / rank)."""
    lora_rslora: bool = False
    """Scale adapters by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    adapter: Literal["lora", "dora"] = "lora"
    """Kind of adapter when lora_rank is above 0; dora (arXiv 2402.09353) learns the length of each row besides."""
    quantization: Literal["none", "nf4"] = "none"
    """Type of the frozen weights under adapters; nf4: 4 bits, QLoRA (arXiv 2305.14314). Needs bitsandbytes."""
    lora_targets: str = "all-linear"
    """Modules that get adapters: all-linear, or names separated by commas."""
    freeze_vision: bool = True
    """Of a vision-language model, train the language model only; false: the vision tower and its projector too, with
    adapters where there are adapters."""
    cpu_threads: int = 0
    """OpenMP threads of each rank on CPU; 0: all cores divided by ranks."""
    start_deadline_s: float = 900.0
    """Seconds within which the ranks must have started."""
    step_deadline_s: float = 3600.0
    """Seconds within which a training step must end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSyncConfig:
    """Section `weight_sync`."""

    transport: Literal["auto", "object_store", "delta", "broadcast", "cuda_ipc"] = "auto"
    """How weights reach generators. object_store: whole, through Ray's object store, whose memory engine workers map;
    auto takes it everywhere. delta: the same, but a generator that has the version before fetches only what changed,
    which pays where nodes are linked slowly. broadcast: from the learner's first rank to the workers of each engine, by
    NCCL between GPUs and gloo between CPUs, which pays between nodes with fast links. cuda_ipc is not built."""
    lora: Literal["merged", "adapter"] = "merged"
    """Of a learner with adapters (learner.lora_rank). merged: whole weights, adapters merged into them. adapter: the
    adapter alone, which engines keep beside weights that they were sent once; generating is slower."""
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
    """Seconds within which one generator must have loaded, verified and committed; a broadcast may take half of it."""
