"""What a recipe says about rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Section `reward`."""

    verifier: str = "exact_number"
    """Decides correct or not: exact_number, math, gsm8k. Fills a verdict's status and pass@1."""
    functions: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})
    """Reward function to weight. A built-in's name, or path.py:function relative to the recipe."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for a function, by its name: {length: {target: 200}}."""
    scorers: int = 1
    """Scorer actors, each with one killable process for reward code."""
    time_limit_s: float = 5.0
    """Seconds one reward function may take for one completion before it is killed: status timeout, reward 0."""
    max_consecutive_errors: int = 5
    """Groups in a row in which a reward function raised before the run stops, naming it."""
