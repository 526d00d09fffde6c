"""One group from task to verdicts, and whether it can teach anything."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from funicular.actors.distillation_config import reward_factor
from funicular.actors.errors import GroupFailed
from funicular.actors.losses.presets import preset_of
from funicular.actors.sampling import seed_of
from funicular.actors.scorer import ScoreReport
from funicular.actors.types import GenerationRequest, GroupTimes, ScoredGroup, TeacherRecord
from funicular.launch.accounts import Issue
from funicular.launch.run import Run


async def roll_out(run: Run, issue: Issue) -> ScoredGroup:
    """Generate and score one group. The payload goes from generator to scorer, and to a teacher, by reference."""
    request = GenerationRequest(
        group_id=issue.group_id,
        task=issue.task,
        count=run.config.algorithm.group_size,
        temperature=run.config.generator.temperature,
        seed=request_seed(run, issue.task.task_id, issue.slot, issue.tries),
    )
    await run.accounts.ledger.durable()
    issued_at = time.time()
    record, payload = await (run.given or run.generators).generate(request)
    generated_at = time.time()
    run.accounts.generated(issue, record)
    report, teaching, teacher_payload = await _score(run, issue, payload)
    group = ScoredGroup(
        group_id=issue.group_id,
        slot=issue.slot,
        task=issue.task,
        generation=record,
        verdicts_G=report.verdicts_G,
        payload=payload,
        scoring_seconds=report.seconds,
        times=GroupTimes(issued_at=issued_at, generated_at=generated_at, scored_at=time.time()),
        teaching=teaching,
        teacher_payload=teacher_payload,
    )
    run.accounts.scored(group)
    await run.accounts.ledger.durable()
    return group


def request_seed(run: Run, *what: object) -> int | None:
    """With `generator.request_seeds` a number that depends on the run's seed and `what` alone; else None."""
    return seed_of(run.config.seed, *what) if run.config.generator.request_seeds else None


async def _score(run: Run, issue: Issue, payload: Any) -> tuple[ScoreReport, TeacherRecord | None, Any]:
    """Verdicts, and at the same time what a teacher says."""
    to_score = replace(issue.task, images=())  # only the generator looks at them
    if run.teachers is None:
        return await run.scorers.score(to_score, payload), None, None
    report, taught = await asyncio.gather(
        run.scorers.score(to_score, payload),
        run.teachers.score(issue.group_id, payload),
        return_exceptions=True,  # both end before either's error is raised: neither is cut off halfway
    )
    if isinstance(report, BaseException):
        raise report
    if isinstance(taught, BaseException):
        raise taught
    return report, *taught


def require_signal(run: Run, group: ScoredGroup) -> None:
    """Raise GroupFailed for a group that can train nothing, or that dynamic sampling replaces."""
    rewards = [reward for reward in group.rewards_G if reward is not None]
    needed = 2 if reward_factor(run.config.distillation) != 0 else 1  # a reward is compared with others of its group
    if len(rewards) < needed:
        causes = {f"{v.status.value} {dict(v.details)}" for v in group.verdicts_G if v.reward is None}
        detail = f"{len(rewards)} valid of {len(group.rewards_G)} completions; {'; '.join(sorted(causes))[:500]}"
        raise GroupFailed("void", detail)
    if preset_of(run.config.algorithm).zero_variance_groups == "replace" and max(rewards) == min(rewards):
        raise GroupFailed("zero_variance", f"every reward is {rewards[0]:g}", retry_task=False)
