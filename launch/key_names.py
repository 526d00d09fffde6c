"""The nearest valid key for one that does not exist: by edit distance, and by what peers call the thing."""

from __future__ import annotations

from difflib import SequenceMatcher

from funicular.launch.engine_options import NO_SUCH_SAMPLING, SAMPLING_PARAMETERS
from funicular.launch.problems import Problem
from funicular.launch.schema_docs import keys, sections

_CLOSE = 0.72
"""Similarity (difflib) from which a key counts as a possible slip of the pen."""

PEER_NAMES = {
    # algorithm
    "kl_coeff": "algorithm.beta",
    "kl_coef": "algorithm.beta",
    "init_kl_coef": "algorithm.beta",
    "kl_loss_coef": "algorithm.beta",
    "kl_penalty_coef": "algorithm.beta",
    "reference_policy_kl_penalty": "algorithm.beta",
    "kl_penalty": "algorithm.kl_estimator",
    "kl_loss_type": "algorithm.kl_estimator",
    "loss_type": "algorithm.loss",
    "adv_estimator": "algorithm.loss",
    "advantage_estimator": "algorithm.loss",
    "policy_loss_type": "algorithm.loss",
    "loss_agg_mode": "algorithm.aggregation",
    "loss_reduction": "algorithm.aggregation",
    "num_generations": "algorithm.group_size",
    "n_samples_per_prompt": "algorithm.group_size",
    "num_generations_per_prompt": "algorithm.group_size",
    "rollouts_per_example": "algorithm.group_size",
    "rollouts_per_prompt": "algorithm.group_size",
    "num_samples": "algorithm.group_size",
    "rollout.n": "algorithm.group_size",
    "sampling.n": "algorithm.group_size",
    "sampling_params.n": "algorithm.group_size",
    "train_batch_size": "algorithm.groups_per_step",
    "rollout_batch_size": "algorithm.groups_per_step",
    "num_prompts_per_step": "algorithm.groups_per_step",
    "num_unique_prompts_rollout": "algorithm.groups_per_step",
    "prompts_per_step": "algorithm.groups_per_step",
    "batch_size": "algorithm.groups_per_step",
    "global_batch_size": "algorithm.groups_per_step",
    "ppo_mini_batch_size": "algorithm.optimizer_batches",
    "num_mini_batches": "algorithm.optimizer_batches",
    "num_iterations": "algorithm.num_iterations",
    "mu": "algorithm.num_iterations",
    "ppo_epochs": "algorithm.num_iterations",
    "sync_ref_model": "algorithm.reference_refresh_steps",
    "ref_model_sync_steps": "algorithm.reference_refresh_steps",
    "ref_update_steps": "algorithm.reference_refresh_steps",
    "ref_model_mixup_alpha": "algorithm.reference_mixup",
    "clip_eps": "algorithm.epsilon_low",
    "eps_clip": "algorithm.epsilon_low",
    "clip_range": "algorithm.epsilon_low",
    "cliprange": "algorithm.epsilon_low",
    "clip_ratio": "algorithm.epsilon_low",
    "clip_ratio_low": "algorithm.epsilon_low",
    "epsilon": "algorithm.epsilon_low",
    "eps_clip_low": "algorithm.epsilon_low",
    "ratio_clip_min": "algorithm.epsilon_low",
    "clip_ratio_high": "algorithm.epsilon_high",
    "eps_clip_high": "algorithm.epsilon_high",
    "eps_clip_low_high": "algorithm.epsilon_high",
    "ratio_clip_max": "algorithm.epsilon_high",
    "clip_ratio_c": "algorithm.delta",
    "ratio_clip_c": "algorithm.delta",
    "dual_clip": "algorithm.delta",
    "importance_sampling_level": "algorithm.ratio_level",
    "epsilon_cispo": "algorithm.ratio_cap",
    "sapo_temperature_pos": "algorithm.sapo_tau_positive",
    "sapo_temperature_neg": "algorithm.sapo_tau_negative",
    "tau_pos": "algorithm.sapo_tau_positive",
    "tau_neg": "algorithm.sapo_tau_negative",
    "normalize_advantages": "algorithm.whiten_advantages",
    "whiten_rewards": "algorithm.whiten_advantages",
    "multi_objective_aggregation": "algorithm.several_rewards",
    "use_kl_in_reward": "algorithm.kl_in",
    "kl_in_reward": "algorithm.kl_in",
    "use_bias_correction_kl": "algorithm.kl_estimator",
    "vllm_importance_sampling_mode": "algorithm.importance_correction",
    "rollout_is": "algorithm.importance_correction",
    "rollout_is_threshold": "algorithm.importance_cap",
    "vllm_importance_sampling_max": "algorithm.importance_cap",
    "vllm_importance_sampling_min": "algorithm.importance_floor",
    "off_policy_mask_threshold": "algorithm.off_policy_threshold",
    "bypass_mode": "algorithm.old_logprobs",
    "entropy_coeff": "algorithm.entropy_coef",
    "adaptive_entropy_target": "algorithm.entropy_target",
    "target_entropy": "algorithm.entropy_target",
    "entropy_bonus": "algorithm.entropy_coef",
    "tis_imp_ratio_cap": "algorithm.importance_cap",
    "vllm_importance_sampling_cap": "algorithm.importance_cap",
    "vllm_importance_sampling_correction": "algorithm.importance_correction",
    "truncated_importance_sampling": "algorithm.importance_cap",
    "importance_sampling_cap": "algorithm.importance_cap",
    "norm_adv_by_std_in_grpo": "algorithm.scale_rewards",
    "normalize_rewards": "algorithm.scale_rewards",
    "grpo_std_normalization": "algorithm.scale_rewards",
    "overlong_filtering": "algorithm.mask_truncated_completions",
    "mask_truncated": "algorithm.mask_truncated_completions",
    "dynamic_sampling": "algorithm.zero_variance_groups",
    "use_dynamic_sampling": "algorithm.zero_variance_groups",
    "filter_groups": "algorithm.zero_variance_groups",
    "filter_groups.enable": "algorithm.zero_variance_groups",
    # generator
    "max_completion_length": "generator.max_completion_tokens",
    "max_new_tokens": "generator.max_completion_tokens",
    "max_tokens": "generator.max_completion_tokens",
    "max_response_length": "generator.max_completion_tokens",
    "response_length": "generator.max_completion_tokens",
    "generate_max_len": "generator.max_completion_tokens",
    "max_gen_length": "generator.max_completion_tokens",
    "max_prompt_length": "generator.max_prompt_tokens",
    "max_input_length": "generator.max_prompt_tokens",
    "prompt_max_len": "generator.max_prompt_tokens",
    "tp": "generator.tensor_parallel_size",
    "tp_size": "generator.tensor_parallel_size",
    "tensor_parallel": "generator.tensor_parallel_size",
    "tensor_model_parallel_size": "generator.tensor_parallel_size",
    "vllm_tensor_parallel_size": "generator.tensor_parallel_size",
    "num_engines": "generator.count",
    "num_generators": "generator.count",
    "num_inference_engines": "generator.count",
    "vllm_num_engines": "generator.count",
    "gpu_memory_utilization": "generator.gpu_memory_fraction",
    "vllm_gpu_memory_utilization": "generator.gpu_memory_fraction",
    "mem_fraction_static": "generator.gpu_memory_fraction",
    "max_num_seqs": "generator.max_sequences",
    "vllm_kvcache_space": "generator.kv_cache_gib",
    "vllm_cpu_kvcache_space": "generator.kv_cache_gib",
    "sampling_temperature": "generator.temperature",
    "vllm_dtype": "generator.dtype",
    # learner
    "lr": "learner.learning_rate",
    "actor_learning_rate": "learner.learning_rate",
    "policy_learning_rate": "learner.learning_rate",
    "lr_warmup_steps": "learner.warmup_steps",
    "num_warmup_steps": "learner.warmup_steps",
    "warmup_ratio": "learner.warmup_steps",
    "optim": "learner.optimizer",
    "optimizer_type": "learner.optimizer",
    "lr_scheduler": "learner.schedule",
    "lr_scheduler_type": "learner.schedule",
    "lr_decay_style": "learner.schedule",
    "scheduler": "learner.schedule",
    "lr_decay_steps": "learner.decay_steps",
    "num_decay_steps": "learner.decay_steps",
    "min_lr": "learner.min_lr_ratio",
    "min_lr_rate": "learner.min_lr_ratio",
    "lr_min_ratio": "learner.min_lr_ratio",
    "sgd_momentum": "learner.momentum",
    "muon_momentum": "learner.momentum",
    "betas": "learner.adam_beta2",
    "grad_clip": "learner.max_grad_norm",
    "clip_grad": "learner.max_grad_norm",
    "gradient_clipping": "learner.max_grad_norm",
    "max_norm": "learner.max_grad_norm",
    "per_device_train_batch_size": "learner.micro_batch_tokens",
    "micro_batch_size": "learner.micro_batch_tokens",
    "micro_train_batch_size": "learner.micro_batch_tokens",
    "train_micro_batch_size": "learner.micro_batch_tokens",
    "ppo_micro_batch_size_per_gpu": "learner.micro_batch_tokens",
    "ppo_max_token_len_per_gpu": "learner.micro_batch_tokens",
    "max_tokens_per_gpu": "learner.micro_batch_tokens",
    "gradient_accumulation_steps": "learner.micro_batch_tokens",
    "enable_gradient_checkpointing": "learner.gradient_checkpointing",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "activation_offloading": "learner.offload_activations",
    "enable_activation_offload": "learner.offload_activations",
    "cpu_checkpointing": "learner.offload_activations",
    "sequence_parallel_size": "learner.sequence_parallel",
    "ulysses_sequence_parallel_size": "learner.sequence_parallel",
    "ulysses_size": "learner.sequence_parallel",
    "ring_attn_size": "learner.sequence_parallel",
    "context_parallel_size": "learner.sequence_parallel",
    "cp_size": "learner.sequence_parallel",
    "padding_free": "learner.packing",
    "use_remove_padding": "learner.packing",
    "remove_padding": "learner.packing",
    "packing_samples": "learner.packing",
    "shared_prefix_training": "learner.share_prefix",
    "prefix_grouper": "learner.share_prefix",
    "use_prefix_grouper": "learner.share_prefix",
    "cast_lm_head_to_fp32": "learner.head_dtype",
    "fp32_lm_head": "learner.head_dtype",
    "deepspeed_stage": "learner.zero_stage",
    "zero": "learner.zero_stage",
    "adam_offload": "learner.offload_optimizer",
    "cpu_offload": "learner.offload_optimizer",
    "optimizer_offload": "learner.offload_optimizer",
    "offload_optimizer_device": "learner.offload_optimizer",
    "optimizer_cpu_offload": "learner.offload_optimizer",
    "param_offload": "learner.offload_parameters",
    "offload_param": "learner.offload_parameters",
    "offload_param_device": "learner.offload_parameters",
    "num_learners": "learner.ranks",
    "num_gpus_per_node": "learner.ranks",
    "n_gpus_per_node": "learner.ranks",
    "actor_num_gpus_per_node": "learner.ranks",
    "world_size": "learner.ranks",
    "bf16": "learner.compute_dtype",
    "torch_dtype": "learner.dtype",
    "precision": "learner.dtype",
    "lora_r": "learner.lora_rank",
    "use_dora": "learner.adapter",
    "use_rslora": "learner.lora_rslora",
    "load_in_4bit": "learner.quantization",
    "bnb_4bit_quant_type": "learner.quantization",
    "target_modules": "learner.lora_targets",
    "freeze_vit": "learner.freeze_vision",
    "freeze_vision_tower": "learner.freeze_vision",
    # the run
    "total_training_steps": "max_steps",
    "num_train_steps": "max_steps",
    "num_training_steps": "max_steps",
    "total_steps": "max_steps",
    "max_num_steps": "max_steps",
    "steps": "max_steps",
    "num_train_epochs": "max_steps",
    "num_epochs": "max_steps",
    "total_epochs": "max_steps",
    "epochs": "max_steps",
    "max_off_policy_steps": "max_staleness",
    "max_async_level": "max_staleness",
    "async_steps": "max_staleness",
    "max_head_offpolicyness": "max_staleness",
    "output_dir": "run_dir",
    "save_path": "run_dir",
    "default_local_dir": "run_dir",
    "log_dir": "run_dir",
    "run_name": "name",
    "experiment_name": "tracking.experiment",
    "random_seed": "seed",
    "resume_from_checkpoint": "resume",
    "resume_mode": "resume",
    "resume_from_path": "resume",
    # model, data, rewards
    "model": "model.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "model_path": "model.path",
    "pretrain": "model.path",
    "hf_checkpoint": "model.path",
    "policy_model": "model.path",
    "template": "model.chat_template",
    "apply_chat_template": "data.chat",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "prompt_data": "data.path",
    "train_files": "data.path",
    "train_data": "data.path",
    "val_files": "data.held_out_path",
    "eval_dataset": "data.held_out_path",
    "dataset_config": "data.subset",
    "dataset_config_name": "data.subset",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.held_out_split",
    "prompt_key": "data.prompt_column",
    "image_key": "data.images_column",
    "image_column": "data.images_column",
    "input_key": "data.prompt_column",
    "label_key": "data.answer_column",
    "answer_key": "data.answer_column",
    "input_template": "data.prompt_template",
    "reward_funcs": "reward.functions",
    "reward_fn": "reward.functions",
    "reward_weights": "reward.functions",
    "custom_reward_function": "reward.functions",
    "reward_kwargs": "reward.options",
    "rm_type": "reward.verifier",
    "num_workers": "reward.scorers",
    "completion_key": "data.completion_column",
    "response_key": "data.completion_column",
    "output_key": "data.completion_column",
    # distillation
    "teacher_model": "distillation.teacher",
    "teacher_model_name_or_path": "distillation.teacher",
    "teacher_path": "distillation.teacher",
    "opd_teacher_load": "distillation.teacher",
    "opd_kl_coef": "distillation.coef",
    "distillation_coef": "distillation.coef",
    "kd_coef": "distillation.coef",
    "kd_temperature": "distillation.temperature",
    "kd_temp": "distillation.temperature",
    "distillation_type": "distillation.loss",
    # evaluation, checkpoints, tracking, cluster
    "eval_steps": "evaluation.every",
    "eval_interval": "evaluation.every",
    "test_freq": "evaluation.every",
    "val_period": "evaluation.every",
    "save_steps": "checkpoint.every",
    "save_freq": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "save_period": "checkpoint.every",
    "ckpt_interval": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "max_actor_ckpt_to_keep": "checkpoint.keep_last",
    "max_ckpts_to_keep": "checkpoint.keep_last",
    "keep_top_k": "checkpoint.keep_best",
    "save_top_k": "checkpoint.keep_best",
    "metric_for_best_model": "checkpoint.best_metric",
    "metric_name": "checkpoint.best_metric",
    "monitor": "checkpoint.best_metric",
    "save_dir": "checkpoint.path",
    "checkpoint_dir": "checkpoint.path",
    "ckpt_path": "checkpoint.path",
    "default_hdfs_dir": "checkpoint.path",
    "report_to": "tracking.mlflow",
    "use_wandb": "tracking.mlflow",
    "wandb_project": "tracking.experiment",
    "project_name": "tracking.experiment",
    "log_completions": "tracking.completions_every",
    "ray_address": "cluster.address",
    "object_store_memory": "cluster.object_store_gib",
}


def nearest_key(name: str) -> str | None:
    """The valid key that `name` probably means; None when nothing is close.

    Peers' names come first, the longest suffix before shorter ones (`rollout.n` before `n`); then the same
    last part in another section; then edit distance over full keys and over last parts.
    """
    wanted = name.strip().lstrip("-+").replace("-", "_").replace("/", ".").lower()
    if wanted in keys():
        return wanted
    parts = wanted.split(".")
    for start in range(len(parts)):
        if known := PEER_NAMES.get(".".join(parts[start:])):
            return known
    same_last = [key for key in keys() if key.rpartition(".")[2] == parts[-1]]
    if same_last:
        return max(same_last, key=lambda key: _similarity(key, wanted))
    scored = [
        (
            max(_similarity(key, wanted), _similarity(key.rpartition(".")[2], parts[-1])),
            _similarity(key, wanted),
            key,
        )
        for key in keys()
    ]
    best, _, key = max(scored)
    return key if best >= _CLOSE else None


def nearest_section(name: str) -> str | None:
    """The section that a misspelt one probably means; None for a name below the top level."""
    best = max(sections(), key=lambda section: _similarity(section, name))
    return best if "." not in name and _similarity(best, name) >= _CLOSE else None


def unknown_key(name: str, where: str, value: str) -> Problem:
    """No such key: names the nearest one, its type and what it does. An empty value is a mapping."""
    related: tuple[str, ...] = ()
    if name.rpartition(".")[2].lower() in SAMPLING_PARAMETERS:
        return Problem(where=where, key=name, value=value, expected=NO_SUCH_SAMPLING, nearest="Leave it out")
    if name in keys():
        section, _, last = name.partition(".")
        hint = f"A dot is no level in a file: write {section}: {{{last}: {value}}}"
    elif value in ("", "null") and nearest_section(name):
        hint = f"Did you mean the section {nearest_section(name)}?"
    elif nearest := nearest_key(name):
        key = keys()[nearest]
        hint = f"Did you mean {nearest} ({key.type_text})? {key.doc}"
        related = (nearest,)
    else:
        hint = "`funicular config keys` lists all keys"
    return Problem(where=where, key=name, value=value, expected="there is no such key", nearest=hint, related=related)


def not_a_section(name: str, value: str, where: str) -> Problem:
    """A section was given a value of its own."""
    members = ", ".join(key.partition(".")[2] for key in keys() if key.startswith(f"{name}."))
    nearest = PEER_NAMES.get(name)
    hint = f"Did you mean {nearest}={value}?" if nearest else ""
    return Problem(where=where, key=name, value=value, expected=f"a section with the keys {members}", nearest=hint)


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.replace(".", "_"), right.replace(".", "_")).ratio()
