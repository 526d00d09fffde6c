"""The rollouts of a step that people get to read: rows of the table of completions, and rows of traces."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ray.exceptions import RayError

from funicular.actors.types import GroupPayload, GroupTimes, ScoredGroup
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.launch.rows import CompletionRow, TraceRow
from funicular.launch.run import Run
from funicular.rewards.messages import content_text

PAYLOAD_DEADLINE_S = 60.0


async def completion_rows(run: Run, groups: Sequence[ScoredGroup]) -> list[CompletionRow]:
    """The first rollouts of the batch, each `tracking.completions_every` steps."""
    tracking = run.config.tracking
    if not tracking.completions_every or run.step % tracking.completions_every:
        return []
    rows: list[CompletionRow] = []
    for group in groups:
        if len(rows) >= tracking.completions_rows:
            break
        if payload := await _payload(run, group):
            rows += [_completion_row(group, payload, member) for member in _members(group)]
    return rows[: tracking.completions_rows]


async def trace_rows(run: Run, groups: Sequence[ScoredGroup], trained_from: int) -> list[TraceRow]:
    """`tracking.traces_per_step` rollouts of the batch, by chance: the same ones whenever this step is made again.

    Args:
        trained_from: policy version before the step's update; staleness counts from it.
    """
    members = [(group, times, member) for group in groups if (times := group.times) for member in _members(group)]
    chance = random.Random(f"{run.config.seed} traces {run.step}")
    count = min(run.config.tracking.traces_per_step, len(members))
    rows = []
    for index in sorted(chance.sample(range(len(members)), count)):
        group, times, member = members[index]
        if payload := await _payload(run, group):
            rows.append(_trace_row(group, times, payload, member, trained_from))
    return rows


def _members(group: ScoredGroup) -> range:
    return range(len(group.verdicts_G))


async def _payload(run: Run, group: ScoredGroup) -> GroupPayload | None:
    """None, and a word of it, if it cannot be had: it has been trained, and what people see must not stop a run."""
    try:
        return await call(group.payload, deadline_s=PAYLOAD_DEADLINE_S, what=f"payload of {group.group_id}")
    except (RayError, DeadlineExceeded) as error:
        run.tracker.event(f"{group.group_id} is not in the table of completions or the traces: {error}")
        return None


def _completion_row(group: ScoredGroup, payload: GroupPayload, member: int) -> CompletionRow:
    verdict = group.verdicts_G[member]
    prompt = group.task.prompt
    return CompletionRow(
        group_id=group.group_id,
        task_id=group.task.task_id,
        prompt=prompt
        if isinstance(prompt, str)
        else "\n".join(f"{message['role']}: {content_text(message['content'])}" for message in prompt),
        completion=payload.texts[member],
        answer=group.task.answer,
        reward=group.rewards_G[member],
        breakdown=verdict.breakdown,
        status=verdict.status.value,
        details=verdict.details,
        tokens=group.generation.lengths_G[member],
        truncated=group.generation.truncated_G[member],
        policy_version=group.generation.oldest_version,
    )


def _trace_row(
    group: ScoredGroup, times: GroupTimes, payload: GroupPayload, member: int, trained_from: int
) -> TraceRow:
    record = group.generation
    return TraceRow(
        rollout=_completion_row(group, payload, member),
        member=member,
        messages=_messages(group),
        verifier=group.task.verifier,
        generator=record.generator,
        prompt_tokens=record.prompt_tokens,
        newest_version=record.newest_version,
        staleness=None if record.oldest_version is None else trained_from - record.oldest_version,
        issued_at=times.issued_at,
        generated_at=times.generated_at,
        scored_at=times.scored_at,
        generation_s=record.seconds,
        scoring_s=group.scoring_seconds,
    )


def _messages(group: ScoredGroup) -> tuple[Mapping[str, str], ...]:
    prompt = group.task.prompt
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    return tuple({"role": message["role"], "content": content_text(message["content"])} for message in prompt)
