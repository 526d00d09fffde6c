"""Puts together what the verifier and each reward function said of one completion: status, gates, weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

from funicular.rewards.attribution import Outcome
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Status, Verdict
from funicular.rewards.verification import Verification


def verdict(index: int, verification: Verification, outcomes: Mapping[str, Outcome], config: RewardConfig) -> Verdict:
    """The verdict on one completion.

    Args:
        outcomes: of the whole group, by the function's name in reward.functions.
    """
    details = dict(verification.details)
    for name, outcome in outcomes.items():
        for problem in (outcome.timeouts, outcome.errors):
            if index in problem:
                details[name] = problem[index]
    status = _status(index, verification, outcomes)
    breakdown = {name: 0.0 if index in o.timeouts else o.values.get(index) for name, o in outcomes.items()}
    void = status is Status.INFRA_ERROR
    for name, outcome in outcomes.items():
        applies = any(value is not None for value in outcome.values.values())
        if applies and breakdown[name] is None and status is not Status.INFRA_ERROR:
            void = True
            details[name] = "returned None for this completion, but not for its whole group"
    numbers = []
    for name, value in gated(breakdown, config).items():
        weight = config.functions[name]
        if value is None or not weight:
            continue
        if _closed(config.gates.get(name), breakdown):
            details[f"{name} gate"] = f"closed: {config.gates[name]} is not above 0"
        numbers.append(weight * value)
    return Verdict(
        reward=sum(numbers) if numbers and not void else None, breakdown=breakdown, status=status, details=details
    )


def gated(breakdown: Mapping[str, float | None], config: RewardConfig) -> dict[str, float | None]:
    """Each function's own number, 0 where its gate is closed, None where it does not apply."""
    return {
        name: 0.0 if value is not None and _closed(config.gates.get(name), breakdown) else value
        for name, value in breakdown.items()
    }


def _closed(gate: str | None, breakdown: Mapping[str, float | None]) -> bool:
    """Whether a gate keeps its function out of the sum. One that does not apply (None) is open."""
    value = None if gate is None else breakdown[gate]
    return value is not None and value <= 0


def _status(index: int, verification: Verification, outcomes: Mapping[str, Outcome]) -> Status:
    """The worst of what the verifier and the functions say."""
    said = verification.status or (Status.PASSED if verification.correct else Status.FAILED)
    if said is Status.INFRA_ERROR or any(index in outcome.errors for outcome in outcomes.values()):
        return Status.INFRA_ERROR
    return Status.TIMEOUT if any(index in outcome.timeouts for outcome in outcomes.values()) else said
