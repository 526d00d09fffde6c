"""A whole run with code tasks: pools start first, programs are judged in them, and the run shows what they did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from funicular.launch.metrics_file import read_metrics
from tests.tiny_run import tiny_recipe, train

pytestmark = pytest.mark.integration

CODE = ("data.path=code", "data.kinds=calls", "reward.verifier=code", "generator.max_prompt_tokens=400")


def test_a_run_with_code_tasks_judges_them_in_a_sandbox_and_shows_it(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    done = train(recipe, *CODE, "run_dir=run", "sandbox.slots=2", "max_steps=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"sandbox L[13] on node \w+, 2 slots", done.stdout)
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "sandbox/level" in line]
    assert len(steps) == 2
    for step in steps:
        assert step["sandbox/submissions"] >= 8
        assert step["sandbox/infra_error_frac"] == 0
        assert 0 <= step["sandbox/idle_frac"] <= 1
        assert 0 <= step["perf/scorer_idle_frac"] <= 1
        assert step["hack/canary_reads"] == 0
        assert sum(value for name, value in step.items() if name.startswith("sandbox/outcome/")) == pytest.approx(1)


def test_a_recipe_that_no_node_can_serve_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    refused = train(recipe, *CODE, "run_dir=run", "sandbox.isolation=L1", "sandbox.min_level=L3")
    assert refused.returncode == 2
    assert "sandbox.isolation=L1" in refused.stderr
    assert "starting Ray" not in refused.stdout
