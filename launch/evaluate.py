"""pass@1 on held-out tasks, through the same generators and scorers as training. Not part of the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from funicular.actors.errors import GroupFailed
from funicular.actors.types import GenerationRequest
from funicular.launch.rollout import request_seed
from funicular.launch.run import Run
from funicular.rewards.types import Status, Task, Verdict

TRIES = 3
JUDGED = (Status.PASSED, Status.FAILED, Status.ERROR, Status.TIMEOUT)
"""Statuses that say something of the policy; an infra_error says nothing and is counted apart."""


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
    for tries_left in reversed(range(TRIES)):
        try:
            _, payload = await run.generators.generate(request)
            report = await run.scorers.score(task, payload)
            return report.verdicts_G[0]
        except GroupFailed as failure:
            if not failure.retry_task or not tries_left:
                run.tracker.event(f"evaluation: task {task.task_id} not judged: {failure}")
                return None
    return None
