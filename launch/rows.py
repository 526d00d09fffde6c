"""What the run folder and MLflow show of single rollouts: rows of tables, and what traces are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRow:
    """One row of a table of completions: for people to read."""

    group_id: str
    task_id: str
    prompt: str
    completion: str
    answer: str | None
    reward: float | None
    """None: the completion is void."""
    breakdown: Mapping[str, float | None]
    """Each reward function's own number."""
    status: str
    """`funicular.rewards.types.Status`."""
    details: Mapping[str, str]
    tokens: int
    """Of the completion."""
    truncated: bool
    policy_version: int | None
    """The oldest that sampled any of the group's tokens; None: they were given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One rollout from task to verdict: all that a trace is made of."""

    rollout: CompletionRow
    member: int
    """Which completion of its group, from 0."""
    messages: tuple[Mapping[str, str], ...]
    """The prompt as role and content; a plain text is one message of the user."""
    verifier: str
    generator: str
    prompt_tokens: int
    newest_version: int | None
    """The newest that sampled any of the group's tokens; None: they were given."""
    staleness: int | None
    """Policy versions between the group's oldest and the one that it trained; None: they were given."""
    issued_at: float
    generated_at: float
    scored_at: float
    """Seconds since 1970, by the driver's clock: waiting for a free generator or scorer is inside."""
    generation_s: float
    """Of the group, in its engine: from submission to the last member's last token."""
    scoring_s: float
    """Of the group, in its scorer."""
