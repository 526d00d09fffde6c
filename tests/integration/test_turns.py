"""A run whose learner and generators take turns trains what one with parts of their own trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from funicular.launch.ledger import audit
from funicular.launch.metrics_file import read_metrics
from tests.tiny_run import tiny_recipe, train

pytestmark = pytest.mark.integration


def steps(run_dir: Path, *names: str) -> list[dict[str, float]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: line[name] for name in names} for line in lines if names[0] in line]


def test_turns_train_what_parts_of_their_own_train(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    shape = ["generator.tensor_parallel_size=2", "learner.ranks=2", "learner.zero_stage=3", "generator.max_sequences=1"]
    same = ["max_staleness=0", "generator.request_seeds=true", "evaluation.every=2", *shape]
    apart = train(recipe, *same, "run_dir=apart")
    assert apart.returncode == 0, apart.stdout[-3000:] + apart.stderr[-3000:]
    shared = train(recipe, *same, "run_dir=shared", "cluster.colocate=true")
    assert shared.returncode == 0, shared.stdout[-3000:] + shared.stderr[-3000:]
    names = (
        "reward/mean",
        "policy/loss",
        "policy/grad_norm",
        "rollout/completion_len_mean",
        "mismatch/logprob_abs_mean",
    )
    mine, theirs = (steps(tmp_path / run_dir, *names) for run_dir in ("shared", "apart"))
    assert len(mine) == len(theirs) == 4
    for in_turns, alone in zip(mine, theirs, strict=True):
        assert in_turns == pytest.approx(alone, rel=1e-3, abs=1e-5)
    evaluated = [steps(tmp_path / run_dir, "eval/held_out/reward_mean") for run_dir in ("shared", "apart")]
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0]) == 3
    account = audit(tmp_path / "shared" / "ledger.jsonl")
    assert account.problems == []
    assert account.trained_tasks == audit(tmp_path / "apart" / "ledger.jsonl").trained_tasks
    assert min(line["time/gpu_turns_s"] for line in steps(tmp_path / "shared", "time/gpu_turns_s")) > 0
