"""The training loop: read this file first.

    tasks ──► generators ──completions──► scorers ──verdicts──► rollout buffer
                  ▲                                                  │ slots, in order
                  └──── weight sync, version v ◄──── learner ◄───────┘

`produce` fills slots for as long as the run lasts; `learn` takes them in order and is the only clock. They meet in the
buffer, which admits a slot only while fewer than max_staleness + 1 batches are unreleased, so that nothing is born too
old; `max_staleness: 0` is lockstep, by the same code. What moves here are references and small records, never tensors.
With `cluster.colocate`, learner and generators take turns on the same GPUs: `actors/gpu_turns.py` sees to it around
them, and nothing here knows.

Lockstep, two groups a step:  reserve 0, 1 ─► generate, score ─► take 0, 1 ─► step ─► publish ─► release ─► reserve 2, 3
"""

from __future__ import annotations

import asyncio
import time

from funicular.actors.errors import GroupFailed, LearnerLost, PayloadsLost, RunStopped
from funicular.actors.types import EmptySlot, ScoredGroup
from funicular.launch.accounts import Issue
from funicular.launch.checkpoint_files import CheckpointError
from funicular.launch.evaluate import evaluate
from funicular.launch.resume import begin_attempt
from funicular.launch.rollout import require_signal, roll_out
from funicular.launch.run import Run
from funicular.launch.shown_rollouts import completion_rows, trace_rows
from funicular.launch.stages import first_to_end
from funicular.launch.step_metrics import parts_metrics, step_metrics, waiting_metrics


async def train(run: Run) -> str:
    """Run until `max_steps` are done ("finished") or a stop was asked for ("stopped").

    An attempt ends early when the learner is lost; the next one begins from the newest snapshot.

    Raises:
        RunStopped: the run cannot go on, and why.
    """
    lost: LearnerLost | None = None
    while True:
        try:
            if lost:
                await restart_learner(run, lost)
            await begin_attempt(run)
            outcome = await first_to_end(learn(run), produce(run))
            if outcome == "stopped":
                await run.save()  # now that nothing is generated any more, which learner ranks may have to wait for
            await run.checkpoints.sealed()
            return outcome
        except LearnerLost as error:
            lost = error


async def restart_learner(run: Run, lost: LearnerLost) -> None:
    """Put fresh learner ranks in place of the lost ones; the next attempt loads the newest snapshot into them."""
    run.budget.spend("learner", str(lost))
    run.tracker.event(f"learner lost ({lost}); going back to the newest snapshot")
    await run.generators.abort_all("rolled_back")
    await run.learners.restart()
    await run.checkpoints.sealed()
    try:
        run.snapshot = await asyncio.to_thread(run.checkpoints.newest) or run.snapshot
    except CheckpointError as error:
        raise RunStopped(str(error)) from error


async def produce(run: Run) -> None:
    """Turn tasks into scored groups, many at a time, for as long as the run lasts."""
    async with asyncio.TaskGroup() as groups:
        while True:
            slot = await run.buffer.reserve()  # before a task is drawn, so that slots are drawn for in order
            groups.create_task(fill(run, run.accounts.open(slot)))


async def fill(run: Run, issue: Issue) -> None:
    """Bring one group into its slot. What fails is tried again there; at the bound the slot is filled empty."""
    algorithm = run.config.algorithm
    for tries_left in reversed(range(algorithm.max_replacements + 1)):
        try:
            group = await roll_out(run, issue)
            require_signal(run, group)
        except GroupFailed as failure:
            run.tracker.event(f"{issue.group_id} dropped: {failure}")
            if tries_left:
                issue = run.accounts.again(issue, failure)
            else:
                run.accounts.drop(issue, failure.reason)
                run.accounts.counts["empty"] += 1
                await run.accounts.ledger.durable()
                await run.buffer.fill(EmptySlot(slot=issue.slot, reason=failure.reason))
        else:
            await run.buffer.fill(group)
            return


async def learn(run: Run) -> str:
    """Take a batch, make a policy version of it, hand the version to the generators; then again."""
    if run.step == 0 and run.first_evaluation is None:
        run.first_evaluation = await evaluate(run)
    ledger = run.accounts.ledger
    empty_batches = lost_payloads = 0
    while run.step < run.config.max_steps:
        began = time.monotonic()
        batch = await run.next_batch()
        if batch is None:
            return "stopped"
        waited = time.monotonic() - began
        groups = [filling for filling in batch if isinstance(filling, ScoredGroup)]
        if not groups:
            empty_batches += 1
            refuse_more_empty_batches(run, empty_batches, batch)
            await run.buffer.release()
            continue
        try:
            result = await run.learners.step(run.step + 1, groups)
        except PayloadsLost as lost:
            lost_payloads += 1
            if lost_payloads > run.config.algorithm.max_replacements:
                raise RunStopped(f"step {run.step + 1}: {lost}, {lost_payloads} times") from lost
            await draw_again(run, [group for group in groups if group.group_id in lost.group_ids])
            continue
        empty_batches = lost_payloads = 0
        trained_from = run.weights.version
        version = ledger.take_version()
        run.accounts.trained(run.step + 1, version, groups)
        await ledger.durable()  # before anyone sees the new weights
        run.step += 1
        published = await run.weights.publish(version)
        ledger.append("published", version=version, step=run.step)
        await ledger.durable()
        await run.buffer.release()
        metrics = step_metrics(run, groups, result, published, trained_from)
        metrics |= run.buffer.metrics() | await parts_metrics(run)
        run.tracker.log(run.step, metrics | waiting_metrics(waited, time.monotonic() - began))
        run.tracker.completions(run.step, await completion_rows(run, groups))
        run.tracker.traces(run.step, await trace_rows(run, groups, trained_from))
        if run.config.evaluation.every and run.step % run.config.evaluation.every == 0:
            run.evaluated(await evaluate(run))
        if run.config.checkpoint.every and run.step % run.config.checkpoint.every == 0:
            run.tracker.log(run.step, {"time/checkpoint_s": await run.save()})
        run.report_checkpoints()
    return "finished"


async def draw_again(run: Run, groups: list[ScoredGroup]) -> None:
    """Refill the slots of groups whose payloads were lost, each with its own task."""
    for group in groups:
        await run.buffer.empty(group.slot)
    lost = GroupFailed("payload_lost")
    await asyncio.gather(*(fill(run, run.accounts.again(run.accounts.issue_of(g), lost)) for g in groups))


def refuse_more_empty_batches(run: Run, count: int, batch: tuple[ScoredGroup | EmptySlot, ...]) -> None:
    """Stop a run that only makes empty batches, with the reasons of the last one."""
    if count >= run.config.max_empty_batches:
        reasons = sorted({filling.reason for filling in batch if isinstance(filling, EmptySlot)})
        raise RunStopped(f"{count} training batches in a row without one usable group: {', '.join(reasons)}")
