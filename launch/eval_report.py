"""What an evaluation found, as figures, as a table and as lines of a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from funicular.launch.evaluate import JUDGED
from funicular.launch.pass_at_k import LEVEL, RESAMPLES, Estimate, estimate, pass_at_k
from funicular.rewards.types import Status, Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """All completions of one task."""

    task: Task
    texts_G: tuple[str, ...]
    lengths_G: tuple[int, ...]
    """Tokens, end of sequence included."""
    truncated_G: tuple[bool, ...]
    verdicts_G: tuple[Verdict, ...]

    @property
    def judged_G(self) -> tuple[Verdict, ...]:
        """Verdicts that say something of the policy."""
        return tuple(verdict for verdict in self.verdicts_G if verdict.status in JUDGED)

    def lines(self) -> str:
        """One JSON object for each completion; `funicular score` reads them too."""
        rows = zip(self.texts_G, self.lengths_G, self.truncated_G, self.verdicts_G, strict=True)
        records = (
            {
                "task_id": self.task.task_id,
                "completion": text,
                "tokens": tokens,
                "truncated": truncated,
                "status": str(verdict.status),
                "reward": verdict.reward,
                "breakdown": dict(verdict.breakdown),
                "details": dict(verdict.details),
            }
            for text, tokens, truncated, verdict in rows
        )
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Figures of one evaluation."""

    model: str
    task_set: str
    tasks: int
    completions: int
    """Of each task."""
    temperature: float
    not_judged: int
    """Completions that say nothing of the policy: none was generated, or scoring failed."""
    seconds: float
    """Of completing and scoring."""
    statuses: dict[str, int]
    pass_at: dict[int, Estimate]
    """By k. A task counts if at least k of its completions were judged; without such a task there is no entry."""
    reward: Estimate | None
    """None: no completion has a valid reward."""
    functions: dict[str, Estimate]
    """Mean of each reward function, where it applies."""
    tokens_mean: float | None
    truncated_frac: float | None

    def record(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            **asdict(self),
            "pass_at": {str(k): asdict(found) for k, found in self.pass_at.items()},
            "interval": {"method": "percentile bootstrap over tasks", "level": LEVEL, "resamples": RESAMPLES},
        }

    def text(self) -> str:
        """For the terminal."""
        rows = [(f"pass@{k}", found) for k, found in self.pass_at.items()]
        rows += [("reward", self.reward)] if self.reward else []
        rows += [(f"  {name}", found) for name, found in self.functions.items()]
        width = max([len(name) for name, _ in rows] + [12])
        lines = [
            f"model    {self.model}",
            f"tasks    {self.tasks} of {self.task_set}, {self.completions} completions each at temperature "
            f"{self.temperature:g}, {self.seconds:.0f} s",
            "status   "
            + ", ".join(f"{name} {count}" for name, count in self.statuses.items())
            + (f"; {self.not_judged} not judged" if self.not_judged else ""),
            *([f"length   {self.tokens_mean:.1f} tokens, {self.truncated_frac:.1%} cut"] if self.tokens_mean else []),
            "",
            f"{'':<{width}}  {'mean':>8}  {f'{LEVEL:.0%} interval':>18}  {'tasks':>6}",
            *(
                f"{name:<{width}}  {found.value:>8.4f}  {_interval(found):>18}  {found.tasks:>6}"
                for name, found in rows
            ),
        ]
        return "\n".join(lines)


def report_of(
    results: Sequence[TaskResult],
    *,
    model: str,
    task_set: str,
    tasks: int,
    completions: int,
    temperature: float,
    ks: Sequence[int],
    seconds: float,
) -> EvalReport:
    """Figures of the tasks that could be completed.

    Args:
        results: of those tasks.
        tasks: how many were asked for.
    """
    verdicts = [verdict for result in results for verdict in result.verdicts_G]
    pass_at = {}
    for k in ks:
        if values := [_pass_at(result, k) for result in results if len(result.judged_G) >= k]:
            pass_at[k] = estimate(values)
    functions = {}
    for name in dict.fromkeys(name for verdict in verdicts for name in verdict.breakdown):
        if found := _mean_of([[v.breakdown.get(name) for v in result.judged_G] for result in results]):
            functions[name] = found
    lengths = [length for result in results for length in result.lengths_G]
    cut = [truncated for result in results for truncated in result.truncated_G]
    return EvalReport(
        model=model,
        task_set=task_set,
        tasks=tasks,
        completions=completions,
        temperature=temperature,
        not_judged=tasks * completions - sum(len(result.judged_G) for result in results),
        seconds=seconds,
        statuses=dict(Counter(str(verdict.status) for verdict in verdicts).most_common()),
        pass_at=pass_at,
        reward=_mean_of([[verdict.reward for verdict in result.judged_G] for result in results]),
        functions=functions,
        tokens_mean=fmean(lengths) if lengths else None,
        truncated_frac=fmean(cut) if cut else None,
    )


def _pass_at(result: TaskResult, k: int) -> float:
    judged = result.judged_G
    return pass_at_k(len(judged), sum(verdict.status is Status.PASSED for verdict in judged), k)


def _mean_of(numbers: Sequence[Sequence[float | None]]) -> Estimate | None:
    """Each task's mean counts once; tasks without a number are left out."""
    given = [[number for number in of_task if number is not None] for of_task in numbers]
    means = [fmean(of_task) for of_task in given if of_task]
    return estimate(means) if means else None


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return "all the same"
    return f"{found.low:.4f} .. {found.high:.4f}"
