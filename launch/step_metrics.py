"""A training step's metrics. Names: docs/metrics.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from funicular.actors.types import ScoredGroup, StepResult
from funicular.actors.weight_sync import PublishReport
from funicular.launch.run import Run


def step_metrics(
    run: Run, groups: Sequence[ScoredGroup], result: StepResult, published: PublishReport, trained_from: int
) -> dict[str, float]:
    """Everything that is known of a step, from records alone.

    Args:
        trained_from: policy version before the step's update; staleness counts from it.
    """
    lengths = [length for group in groups for length in group.generation.lengths_G]
    oldest = [group.generation.oldest_version for group in groups]
    staleness = [trained_from - version for version in oldest if version is not None]
    tokens = sum(lengths)
    generate_s = max(group.generation.seconds for group in groups)
    busy_s = generate_s + result.seconds + published.seconds
    teacher_s = [group.teaching.seconds for group in groups if group.teaching]
    counts = {f"groups/{name}": float(count) for name, count in run.accounts.counts.items()}
    counts |= {f"groups/dropped/{reason}": float(count) for reason, count in run.accounts.drop_reasons.items()}
    return {
        **_reward_metrics(groups),
        **run.hack_signals.observe(groups, run.tracker.event),
        **result.metrics,
        **published.metrics(),
        **counts,
        "rollout/completion_len_mean": statistics.fmean(lengths),
        "rollout/completion_len_max": float(max(lengths)),
        "rollout/prompt_len_mean": statistics.fmean(group.generation.prompt_tokens for group in groups),
        "rollout/truncated_frac": statistics.fmean(t for group in groups for t in group.generation.truncated_G),
        "rollout/void_frac": statistics.fmean(not ok for group in groups for ok in group.valid_G),
        **_repetition(run, groups),
        **_staleness(staleness),
        "async/policy_version": float(published.version),
        "time/generate_s": generate_s,
        "time/score_s": sum(group.scoring_seconds for group in groups),
        **({"time/teacher_s": max(teacher_s)} if teacher_s else {}),
        "time/learn_s": result.seconds,
        "time/weight_sync_s": published.seconds,
        "perf/tokens_per_s": tokens / busy_s,
        "progress/epoch": float(run.accounts.epoch),
    }


async def parts_metrics(run: Run) -> dict[str, float]:
    """What generators, scorers, teachers and nodes say of themselves since the last step."""
    parts = [part for part in (run.generators, run.scorers, run.teachers, run.nodes) if part]
    return {name: value for part in parts for name, value in (await part.metrics()).items()}


def waiting_metrics(waited_s: float, step_s: float) -> dict[str, float]:
    """How long the learner waited for groups, and the part of the step in which it had nothing to do."""
    return {
        "time/wait_groups_s": waited_s,
        "time/step_s": step_s,
        "perf/learner_idle_frac": waited_s / step_s,
    }


def _repetition(run: Run, groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Nothing, if no completion is stopped because of it."""
    repeated = [one for group in groups for one in group.generation.repeated_G]
    if not run.config.generator.stop_repetition_count or not repeated:
        return {}
    return {"rollout/repetition_frac": statistics.fmean(repeated)}


def _staleness(versions: Sequence[int]) -> dict[str, float]:
    """Nothing, if no version sampled anything."""
    if not versions:
        return {}
    return {"async/staleness_mean": statistics.fmean(versions), "async/staleness_max": float(max(versions))}


def _reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    by_group = [[reward for reward in group.rewards_G if reward is not None] for group in groups]
    rewards = [reward for rewards_G in by_group for reward in rewards_G]
    metrics = {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "reward/zero_std_frac": statistics.fmean(max(rewards_G) == min(rewards_G) for rewards_G in by_group),
    }
    parts: dict[str, list[float]] = {}
    for group in groups:
        for verdict, valid in zip(group.verdicts_G, group.valid_G, strict=True):
            for name, value in verdict.breakdown.items():
                if valid and value is not None:
                    parts.setdefault(name, []).append(value)
    return metrics | {f"reward/{name}": statistics.fmean(values) for name, values in parts.items()}
