"""What `algorithm.loss` stands for, and what is in force once a recipe has overridden parts of it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from funicular.actors.config import AlgorithmConfig
from funicular.actors.losses.settings import (
    Aggregation,
    ImportanceCorrection,
    LossSettings,
    Objective,
    RatioLevel,
)

Baseline = Literal["mean", "leave_one_out", "length_weighted", "beta", "none"]
RewardScale = Literal["group", "batch", "batch_centred", "none"]
Whitening = Literal["none", "completions", "tokens"]
ZeroVariance = Literal["keep", "drop", "replace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One row of the table in docs/algorithms.md. The defaults are GRPO's, arXiv 2402.03300."""

    objective: Objective = "ppo_clip"
    ratio_level: RatioLevel = "token"
    aggregation: Aggregation = "sequence"
    baseline: Baseline = "mean"
    scale_rewards: RewardScale = "group"
    whiten_advantages: Whitening = "none"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    old_logprobs: Literal["learner", "generator"] = "learner"
    zero_variance_groups: ZeroVariance = "keep"


PRESETS: dict[str, Preset] = {
    "grpo": Preset(),
    # arXiv 2503.20783
    "dr_grpo": Preset(aggregation="constant", scale_rewards="none"),
    # TRL's; its local batch is the optimizer batch here (law 1): the token mean
    "bnpo": Preset(aggregation="token"),
    # arXiv 2503.14476; dynamic sampling and overlong rewards are keys of their own
    "dapo": Preset(aggregation="token", epsilon_high=0.28),
    # arXiv 2602.05261
    "luspo": Preset(ratio_level="sequence", aggregation="sequence_sum", epsilon_low=2e-3, epsilon_high=2.5e-3),
    # arXiv 2507.18071
    "gspo": Preset(ratio_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
    "gspo_token": Preset(ratio_level="sequence_token", epsilon_low=3e-4, epsilon_high=4e-4),
    # MiniMax-M1, arXiv 2506.13585
    "cispo": Preset(objective="cispo", aggregation="token"),
    # arXiv 2510.13786
    "scalerl": Preset(
        objective="cispo",
        aggregation="prompt",
        scale_rewards="batch_centred",
        old_logprobs="generator",
        zero_variance_groups="drop",
    ),
    # arXiv 2511.20347
    "sapo": Preset(objective="sapo"),
    # arXiv 2602.10693
    "vespo": Preset(objective="vespo", aggregation="token"),
    # arXiv 2507.20673: the clip is one of log-ratios
    "gmpo": Preset(objective="gmpo", epsilon_low=0.4, epsilon_high=0.4),
    # arXiv 2402.14740
    "rloo": Preset(ratio_level="sequence_sum", baseline="leave_one_out", scale_rewards="none"),
    "reinforce": Preset(objective="reinforce", aggregation="sequence_sum", baseline="none", scale_rewards="none"),
    # arXiv 2501.03262
    "reinforce_pp": Preset(aggregation="token", baseline="none", scale_rewards="none", whiten_advantages="tokens"),
    "reinforce_pp_baseline": Preset(aggregation="token", scale_rewards="none", whiten_advantages="tokens"),
    # arXiv 2505.23585
    "opo": Preset(objective="reinforce", aggregation="sequence_sum", baseline="length_weighted", scale_rewards="none"),
    # arXiv 2506.02864, as its authors ran it
    "beta_normalization": Preset(
        aggregation="sequence_sum", baseline="beta", scale_rewards="none", epsilon_high=0.28, delta=10.0
    ),
}


def preset_of(algorithm: AlgorithmConfig) -> Preset:
    """The recipe's choices, with its preset's where it made none."""
    preset = PRESETS[algorithm.loss]
    return Preset(
        objective=preset.objective if algorithm.objective == "auto" else algorithm.objective,
        ratio_level=preset.ratio_level if algorithm.ratio_level == "auto" else algorithm.ratio_level,
        aggregation=preset.aggregation if algorithm.aggregation == "auto" else algorithm.aggregation,
        baseline=preset.baseline if algorithm.baseline == "auto" else algorithm.baseline,
        scale_rewards=preset.scale_rewards if algorithm.scale_rewards == "auto" else algorithm.scale_rewards,
        whiten_advantages=(
            preset.whiten_advantages if algorithm.whiten_advantages == "auto" else algorithm.whiten_advantages
        ),
        epsilon_low=preset.epsilon_low if algorithm.epsilon_low is None else algorithm.epsilon_low,
        epsilon_high=preset.epsilon_high if algorithm.epsilon_high is None else algorithm.epsilon_high,
        delta=preset.delta if algorithm.delta is None else algorithm.delta,
        old_logprobs=preset.old_logprobs if algorithm.old_logprobs == "auto" else algorithm.old_logprobs,
        zero_variance_groups=(
            preset.zero_variance_groups if algorithm.zero_variance_groups == "auto" else algorithm.zero_variance_groups
        ),
    )


def loss_settings(algorithm: AlgorithmConfig) -> LossSettings:
    """What the loss of a token is computed with."""
    preset = preset_of(algorithm)
    return LossSettings(
        objective=preset.objective,
        ratio_level=preset.ratio_level,
        epsilon_low=preset.epsilon_low,
        epsilon_high=preset.epsilon_high,
        delta=preset.delta,
        ratio_cap=algorithm.ratio_cap,
        sapo_tau_positive=algorithm.sapo_tau_positive,
        sapo_tau_negative=algorithm.sapo_tau_negative,
        vespo_k_positive=algorithm.vespo_k_positive,
        vespo_lambda_positive=algorithm.vespo_lambda_positive,
        vespo_k_negative=algorithm.vespo_k_negative,
        vespo_lambda_negative=algorithm.vespo_lambda_negative,
        beta=algorithm.beta if algorithm.kl_in == "loss" else 0.0,
        kl_estimator=algorithm.kl_estimator,
        importance_correction=_correction(algorithm, preset),
        importance_cap=algorithm.importance_cap,
        importance_floor=algorithm.importance_floor,
        geometric_floor=algorithm.geometric_floor,
        geometric_cap=algorithm.geometric_cap,
        off_policy_threshold=algorithm.off_policy_threshold,
    )


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Whether a reference policy is needed at all, in the loss or in rewards."""
    return algorithm.beta > 0


def uses_entropy(algorithm: AlgorithmConfig) -> bool:
    """Whether the loss has an entropy bonus, now or once it is steered up."""
    return algorithm.entropy_coef > 0 or algorithm.entropy_target is not None


def kl_in_reward(algorithm: AlgorithmConfig) -> bool:
    """Whether advantages depend on the KL to the reference policy."""
    return algorithm.beta > 0 and algorithm.kl_in != "loss"


def _correction(algorithm: AlgorithmConfig, preset: Preset) -> ImportanceCorrection:
    if algorithm.importance_correction != "auto":
        return algorithm.importance_correction
    bypass = preset.old_logprobs == "generator"
    return "none" if bypass or algorithm.importance_cap is None else "token_truncate"
