"""Everything that the loss of a token depends on besides tensors. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Objective = Literal["ppo_clip", "cispo", "sapo", "vespo", "gmpo", "reinforce"]
RatioLevel = Literal["token", "sequence", "sequence_token", "sequence_sum"]
Aggregation = Literal["sequence", "token", "constant", "sequence_sum", "prompt"]
KlEstimator = Literal["k1", "k2", "k3", "k3_unbiased"]
ImportanceCorrection = Literal[
    "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Meaning and sources of the fields: docs/algorithms.md, and the recipe's keys of the same names."""

    objective: Objective = "ppo_clip"
    ratio_level: RatioLevel = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    ratio_cap: float = 5.0
    sapo_tau_positive: float = 1.0
    sapo_tau_negative: float = 1.05
    vespo_k_positive: float = 2.0
    vespo_lambda_positive: float = 3.0
    vespo_k_negative: float = 3.0
    vespo_lambda_negative: float = 2.0
    beta: float = 0.0
    """Of the KL term in the loss; 0: none there."""
    kl_estimator: KlEstimator = "k3"
    importance_correction: ImportanceCorrection = "none"
    importance_cap: float | None = None
    importance_floor: float | None = None
    geometric_floor: float = 0.999
    geometric_cap: float = 1.001
    off_policy_threshold: float | None = None

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ValueError: names the first contradiction.
        """
        for found in self.contradictions():
            raise ValueError(f"{found.key}: got {found.value}, expected {found.expected}")

    def contradictions(self) -> list[Contradiction]:
        """All that contradict each other."""
        upper = 1 + self.epsilon_high
        cap, floor = self.importance_cap, self.importance_floor
        correction = self.importance_correction
        bounded = cap is not None or floor is not None
        folds = ("none", "token_truncate", "token_mask")
        checks = [
            (
                self.objective == "ppo_clip" and self.delta is not None and self.delta <= upper,
                ("delta", f"above 1 + epsilon_high = {upper:g}; below, it would be the upper clip"),
            ),
            (
                self.objective == "cispo" and self.ratio_cap < 1,
                ("ratio_cap", "at least 1: it is an absolute ratio, and on policy every token's is 1"),
            ),
            (
                correction not in ("none", "geometric_mask") and not bounded,
                ("importance_cap", f"a cap, or a floor, for importance_correction={correction}; none corrects nothing"),
            ),
            (
                cap is not None and floor is not None and floor >= cap,
                ("importance_floor", f"below importance_cap = {cap}"),
            ),
            (
                correction == "geometric_mask" and self.geometric_floor >= self.geometric_cap,
                ("geometric_floor", f"below geometric_cap = {self.geometric_cap:g}"),
            ),
            (
                self.objective == "vespo" and correction not in folds,
                ("importance_correction", "none, token_truncate or token_mask: vespo folds it into its weight"),
            ),
            (
                self.objective in ("vespo", "gmpo") and self.ratio_level != "token",
                ("ratio_level", f"token: {self.objective} goes over the completion itself"),
            ),
            (
                self.beta > 0 and self.kl_estimator == "k1",
                ("kl_estimator", "k2, k3 or k3_unbiased: the gradient of k1 in a loss is 0 in expectation"),
            ),
        ]
        return [
            Contradiction(key=key, value=getattr(self, key), expected=expected)
            for wrong, (key, expected) in checks
            if wrong
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """A setting that the others rule out."""

    key: str
    value: object
    expected: str
