"""What each token's loss is divided by (docs/algorithms.md). No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from funicular.actors.losses.settings import Aggregation


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """What one optimizer batch divides by: counts over all its micro-batches and ranks, before a backward."""

    aggregation: Aggregation
    rows: int
    """Valid completions, those with nothing left to train on included."""
    tokens: int
    """Trained tokens of all rows."""
    groups: int
    """Rollout groups, those with nothing left to train on included."""
    max_completion_tokens: int
    """The configured limit, never the padded width; only `constant` reads it."""

    def token_weight(self, row_tokens: int, group_tokens: int) -> float:
        """Coefficient in the optimizer batch's sum of each token of a row with `row_tokens` trained tokens, whose
        group has `group_tokens`.

            sequence       1 / (row_tokens rows)               GRPO
            token          1 / tokens                          DAPO, BNPO
            constant       1 / (rows max_completion_tokens)    Dr.GRPO
            sequence_sum   1 / rows                            LUSPO
            prompt         1 / (groups group_tokens)           ScaleRL

        A row without trained tokens weighs 0.
        """
        if row_tokens == 0:
            return 0.0
        if self.aggregation == "sequence":
            return 1.0 / (row_tokens * self.rows)
        if self.aggregation == "token":
            return 1.0 / self.tokens
        if self.aggregation == "constant":
            return 1.0 / (self.rows * self.max_completion_tokens)
        if self.aggregation == "sequence_sum":
            return 1.0 / self.rows
        return 1.0 / (self.groups * group_tokens)
