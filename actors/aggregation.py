"""What a loss preset means, and what each token's loss is divided by (docs/algorithms.md). No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from funicular.actors.config import AlgorithmConfig

Aggregation = Literal["sequence", "token", "constant"]
RewardScale = Literal["group", "batch", "none"]

PRESETS: dict[str, tuple[Aggregation, RewardScale]] = {
    "grpo": ("sequence", "group"),
    "dr_grpo": ("constant", "none"),
    "bnpo": ("token", "group"),
}
"""Preset -> aggregation, reward scale. bnpo's local batch is the optimizer batch (law 1): the token mean."""


def aggregation_of(algorithm: AlgorithmConfig) -> Aggregation:
    """The aggregation in force: the recipe's, or its preset's."""
    return PRESETS[algorithm.loss][0] if algorithm.aggregation == "auto" else algorithm.aggregation


def reward_scale_of(algorithm: AlgorithmConfig) -> RewardScale:
    """The reward scale in force: the recipe's, or its preset's."""
    return PRESETS[algorithm.loss][1] if algorithm.scale_rewards == "auto" else algorithm.scale_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """What one optimizer batch divides by: counts over all its micro-batches and ranks, before a backward."""

    aggregation: Aggregation
    rows: int
    """Valid completions, those with nothing left to train on included."""
    tokens: int
    """Trained tokens of all rows."""
    max_completion_tokens: int
    """The configured limit, never the padded width; only `constant` reads it."""

    def token_weight(self, row_tokens: int) -> float:
        """Coefficient of each token of a row with `row_tokens` trained tokens in the optimizer batch's sum.

        sequence: 1 / (row_tokens * rows); token: 1 / tokens; constant: 1 / (rows * max_completion_tokens).
        A row without trained tokens weighs 0.
        """
        if row_tokens == 0:
            return 0.0
        if self.aggregation == "sequence":
            return 1.0 / (row_tokens * self.rows)
        if self.aggregation == "token":
            return 1.0 / self.tokens
        return 1.0 / (self.rows * self.max_completion_tokens)
