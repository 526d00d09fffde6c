"""What a step, an evaluation and a whole run look like as one line or a few: text only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PHASES = {
    "wait": "time/wait_groups_s",
    "generate": "time/generate_s",
    "score": "time/score_s",
    "learn": "time/learn_s",
    "sync": "time/weight_sync_s",
}
"""Word on the progress line to metric."""
STEP_METRICS = (
    "reward/mean",
    "policy/loss",
    "perf/tokens_per_s",
    "async/staleness_max",
    "mismatch/logprob_abs_mean",
    "time/step_s",
)
"""The other metrics that the line shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run ends with."""

    status: str
    """finished, failed or killed."""
    steps: int
    seconds: float
    run_dir: Path
    model: Path | None
    """Folder of the exported model; None if there is none."""
    pass_at_1_before: float | None
    """Held-out, before the first step; None if it was not evaluated."""
    pass_at_1_after: float | None
    mlflow: str | None
    """Link or command to see the run; None without MLflow."""
    mlflow_dropped: int = 0
    """Records that MLflow does not have."""


def step_line(step: int, total: int, metrics: Mapping[str, float], eta_s: float | None = None) -> str:
    """One training step. A metric that is not there shows as `-`, never as a number."""
    width = len(str(total))
    parts = [
        f"step {step:>{width}}/{total}",
        f"reward {_number(metrics, 'reward/mean', '.3f')}",
        f"loss {_number(metrics, 'policy/loss', '+.4f')}",
    ]
    evaluated = pass_at_1(metrics)
    if evaluated is not None:
        parts.append(f"pass@1 {evaluated:.3f}")
    parts += [
        f"{_number(metrics, 'perf/tokens_per_s', ',.0f')} tok/s",
        f"staleness {_number(metrics, 'async/staleness_max', '.0f')}",
        f"mismatch {_number(metrics, 'mismatch/logprob_abs_mean', '.1e')}",
        " ".join(f"{word} {_number(metrics, key, '.1f')}" for word, key in PHASES.items()),
        f"= {_number(metrics, 'time/step_s', '.1f')} s",
    ]
    if eta_s is not None:
        parts.append(f"{duration(eta_s)} left")
    return "  ".join(parts)


def evaluation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Held-out tasks, evaluated after `step` steps."""
    sets = sorted({key.split("/")[1] for key in metrics if key.startswith("eval/") and key.count("/") == 2})
    results = [
        f"{name} pass@1 {_number(metrics, f'eval/{name}/pass_at_1', '.3f')} "
        f"reward {_number(metrics, f'eval/{name}/reward_mean', '.3f')}"
        for name in sets
    ]
    return f"evaluated after step {step}: " + ", ".join(results)


_HEADS = {
    "finished": "run finished",
    "failed": "run failed",
    "killed": "run stopped by a signal; started again, it resumes",
}
"""By status. MLflow's word for a run that saved itself and ended is killed."""


def summary_lines(summary: RunSummary) -> list[str]:
    """The block at the end of a run."""
    before, after = summary.pass_at_1_before, summary.pass_at_1_after
    rows = [("steps", f"{summary.steps} in {duration(summary.seconds)}")]
    if before is not None and after is not None:
        rows.append(("held-out pass@1", f"{before:.3f} -> {after:.3f} ({after - before:+.3f})"))
    elif before is not None or after is not None:
        rows.append(("held-out pass@1", f"{_optional(before)} -> {_optional(after)}"))
    rows.append(("model", str(summary.model) if summary.model else "none: the run did not get to its export"))
    rows.append(("run folder", str(summary.run_dir)))
    if summary.mlflow:
        rows += [("MLflow" if i == 0 else "", line) for i, line in enumerate(summary.mlflow.splitlines())]
    if summary.mlflow_dropped:
        rows.append(("", f"{summary.mlflow_dropped} records missing: funicular metrics sync {summary.run_dir}"))
    return [_HEADS[summary.status], *(f"  {name:<16} {value}" for name, value in rows)]


def pass_at_1(metrics: Mapping[str, float]) -> float | None:
    """Held-out pass@1 among the metrics, of the first set by name; None if nothing was evaluated."""
    found = sorted(key for key in metrics if key.startswith("eval/") and key.endswith("/pass_at_1"))
    return metrics[found[0]] if found else None


def duration(seconds: float) -> str:
    """`41 s`, `7 min 5 s`, `3 h 20 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(metrics: Mapping[str, float], key: str, form: str) -> str:
    return format(metrics[key], form) if key in metrics else "-"


def _optional(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.3f}"
