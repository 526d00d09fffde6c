"""pass@1 on held-out tasks, through the same generators and scorers as training. Not part of the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from funicular.actors.errors import GroupFailed
from funicular.actors.protocols import Generating, Scoring
from funicular.actors.types import GenerationRecord, GenerationRequest
from funicular.launch.rollout import request_seed
from funicular.launch.run import Run
from funicular.rewards.types import Status, Task, Verdict

TRIES = 3
JUDGED = (Status.PASSED, Status.FAILED, Status.ERROR, Status.TIMEOUT)
"""Statuses that say something of the policy; an infra_error says nothing and is counted apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A group that is evaluated."""

    generation: GenerationRecord
    payload: Any
    """ray.ObjectRef of the GroupPayload."""
    verdicts_G: tuple[Verdict, ...]


async def evaluate(run: Run) -> Mapping[str, float] | None:
    """One completion for each held-out task; logs and returns the metrics, None without held-out tasks."""
    if not run.held_out:
        return None
    began = time.monotonic()
    verdicts = await asyncio.gather(*(_judge(run, task, index) for index, task in enumerate(run.held_out)))
    judged = [verdict for verdict in verdicts if verdict is not None and verdict.status in JUDGED]
    rewards = [verdict.reward for verdict in judged if verdict.reward is not None]
    metrics = {
        "eval/held_out/tasks": float(len(run.held_out)),
        "eval/held_out/not_judged": float(len(run.held_out) - len(judged)),
        "time/evaluate_s": time.monotonic() - began,
    }
    if judged:
        passed = sum(verdict.status is Status.PASSED for verdict in judged)
        metrics["eval/held_out/pass_at_1"] = passed / len(judged)
    if rewards:
        metrics["eval/held_out/reward_mean"] = sum(rewards) / len(rewards)
    run.tracker.log(run.step, metrics)
    return metrics


async def _judge(run: Run, task: Task, index: int) -> Verdict | None:
    request = GenerationRequest(
        group_id=f"e{run.step}-{index}",
        task=task,
        count=1,
        temperature=run.config.evaluation.temperature,
        seed=request_seed(run, task.task_id, "evaluation", run.step),
    )
    answer = await complete_and_score(run.generators, run.scorers, request, run.tracker.event)
    return None if answer is None else answer.verdicts_G[0]


async def complete_and_score(
    generators: Generating, scorers: Scoring, request: GenerationRequest, say: Callable[[str], None]
) -> Judged | None:
    """One group outside of training, with a few tries; None: it could not be had.

    Args:
        say: called with the reason where a group cannot be had.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            record, payload = await generators.generate(request)
            report = await scorers.score(request.task, payload)
            return Judged(generation=record, payload=payload, verdicts_G=report.verdicts_G)
        except GroupFailed as failure:
            if not failure.retry_task or not tries_left:
                say(f"evaluation: task {request.task.task_id} not judged: {failure}")
                return None
    return None
