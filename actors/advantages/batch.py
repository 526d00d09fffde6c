"""The advantages of a training batch, as its recipe asks for them: rewards in, one number for each completion out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from funicular.actors.advantage import Numbers_PG, group_advantages
from funicular.actors.advantages.beta import beta_advantages
from funicular.actors.advantages.several import average_advantages, normalize_then_sum
from funicular.actors.advantages.whitening import token_whitener, whitened
from funicular.actors.config import AlgorithmConfig
from funicular.actors.losses.presets import Preset, preset_of
from funicular.actors.types import KlScore, ScoredGroup
from funicular.rewards.config import RewardConfig
from funicular.rewards.verdict import gated

Advantages_PG = list[list[float | None]]
KlScores = Mapping[tuple[str, int], KlScore]
"""By group_id and index of the completion."""
_NO_KL = KlScore(tokens=0, total=0.0, to_go_sum=0.0, to_go_squares=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAdvantages:
    """Of a training batch of P groups of G completions."""

    advantages_PG: Advantages_PG
    """None for void completions."""
    kl_weight: float = 0.0
    """kl_in=token_reward: a token's advantage is its completion's plus this times the KL from it to the end."""
    metrics: Mapping[str, float]


def batch_advantages(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    rewards: RewardConfig,
    tokens_PG: Sequence[Sequence[int]],
    kl: KlScores | None = None,
) -> BatchAdvantages:
    """Estimate the advantages of all groups of a training batch together.

    Args:
        rewards: names, weights and gates of the reward functions, for `several_rewards`.
        tokens_PG: trained tokens of each completion, 0 for void ones.
        kl: of every valid completion; needed where `kl_in` is not loss and beta is above 0.

    Raises:
        ValueError: as the estimators; or KL scores are missing.
    """
    preset = preset_of(algorithm)
    metrics: dict[str, float] = {}
    in_reward = algorithm.beta > 0 and algorithm.kl_in == "reward"
    penalty = _kl_penalty(_scores(groups, tokens_PG, kl), algorithm.beta) if in_reward else None
    advantages = _estimated(groups, algorithm, preset, rewards, penalty, metrics)
    kl_weight = 0.0
    if algorithm.beta > 0 and algorithm.kl_in == "token_reward":
        scores = _scores(groups, tokens_PG, kl)
        advantages, kl_weight = _with_kl_to_go(advantages, scores, algorithm.beta, preset.whiten_advantages)
    elif preset.whiten_advantages != "none":
        advantages = whitened(advantages, preset.whiten_advantages, tokens_PG)
    return BatchAdvantages(advantages_PG=advantages, kl_weight=kl_weight, metrics=metrics | _summary(advantages))


def _estimated(
    groups: Sequence[ScoredGroup],
    algorithm: AlgorithmConfig,
    preset: Preset,
    rewards: RewardConfig,
    penalty: Numbers_PG | None,
    metrics: dict[str, float],
) -> Advantages_PG:
    def estimate(numbers: Numbers_PG, lengths_PG: Sequence[Sequence[int]] | None = None) -> Advantages_PG:
        if preset.baseline != "beta":
            return group_advantages(numbers, preset.scale_rewards, baseline=preset.baseline, lengths_PG=lengths_PG)
        advantages, fit = beta_advantages(numbers, algorithm.beta_reward_min, algorithm.beta_reward_max)
        metrics.update(
            {
                "advantage/beta_fit_alpha": fit.alpha,
                "advantage/beta_fit_beta": fit.beta,
                "advantage/beta_fit_mean": fit.mean,
                "advantage/beta_fit_variance": fit.variance,
                "advantage/beta_weight_max": fit.max_weight,
                "advantage/beta_weight_capped_frac": fit.capped_frac,
            }
        )
        return advantages

    if algorithm.several_rewards == "sum_then_normalize":
        numbers: Numbers_PG = [group.rewards_G for group in groups]
        if penalty is not None:
            numbers = _minus(numbers, penalty)
        return estimate(numbers, [group.generation.lengths_G for group in groups])
    if algorithm.several_rewards == "normalize_then_sum":
        return normalize_then_sum(gated_rewards(groups, rewards), rewards.functions)
    return average_advantages(gated_rewards(groups, rewards), estimate)


def gated_rewards(groups: Sequence[ScoredGroup], rewards: RewardConfig) -> dict[str, Numbers_PG]:
    """Reward of each function that has a weight, unweighted, 0 behind a closed gate; None where it does not apply or
    the completion is void."""
    per_group = [
        [
            gated(verdict.breakdown, rewards) if valid else {}
            for verdict, valid in zip(group.verdicts_G, group.valid_G, strict=True)
        ]
        for group in groups
    ]
    return {
        name: [[of_row.get(name) for of_row in of_group] for of_group in per_group]
        for name, weight in rewards.functions.items()
        if weight
    }


def _minus(numbers: Numbers_PG, other: Numbers_PG) -> Advantages_PG:
    return [
        [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
        for a, b in zip(numbers, other, strict=True)
    ]


def _scores(
    groups: Sequence[ScoredGroup], tokens_PG: Sequence[Sequence[int]], kl: KlScores | None
) -> list[list[KlScore | None]]:
    """Of each completion; None for void ones. One without trained tokens was not scored, and has no KL."""
    if kl is None:
        raise ValueError("algorithm.kl_in: a KL term in the reward needs the KL of every completion")
    return [
        [
            None if not valid else kl[group.group_id, index] if tokens else _NO_KL
            for index, (valid, tokens) in enumerate(zip(group.valid_G, tokens_G, strict=True))
        ]
        for group, tokens_G in zip(groups, tokens_PG, strict=True)
    ]


def _kl_penalty(scores_PG: Sequence[Sequence[KlScore | None]], beta: float) -> Advantages_PG:
    """beta times the completion's summed k1; None for void completions."""
    return [[None if score is None else beta * score.total for score in of_group] for of_group in scores_PG]


def _with_kl_to_go(
    advantages_PG: Advantages_PG, scores_PG: Sequence[Sequence[KlScore | None]], beta: float, whitening: str
) -> tuple[Advantages_PG, float]:
    """Returns to go: A - beta * (KL from the token to the end), whitened over all tokens where that is asked for."""
    if whitening != "tokens":
        return advantages_PG, -beta
    pairs = [
        (advantage, score)
        for of_group, scores in zip(advantages_PG, scores_PG, strict=True)
        for advantage, score in zip(of_group, scores, strict=True)
        if advantage is not None and score is not None
    ]
    mean, divisor = token_whitener(
        np.array([float(score.tokens) for _, score in pairs]),
        np.array([advantage for advantage, _ in pairs]),
        beta * np.array([score.to_go_sum for _, score in pairs]),
        beta**2 * np.array([score.to_go_squares for _, score in pairs]),
    )
    return [[None if x is None else (x - mean) / divisor for x in group] for group in advantages_PG], -beta / divisor


def _summary(advantages_PG: Advantages_PG) -> dict[str, float]:
    flat = np.array([a for group in advantages_PG for a in group if a is not None])
    if not flat.size:
        return {}
    return {
        "advantage/mean": float(flat.mean()),
        "advantage/std": float(flat.std()),
        "advantage/min": float(flat.min()),
        "advantage/max": float(flat.max()),
    }
