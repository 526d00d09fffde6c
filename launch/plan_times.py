"""What an earlier run's steps took, beside the least that a plan gives them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from funicular.actors.model_shape import ModelShape
from funicular.launch.config import Config
from funicular.launch.hardware import Hardware
from funicular.launch.metrics_file import read_metrics
from funicular.launch.plan_memory import engine_parts
from funicular.launch.plan_speed import Bounds, Lengths, bounds
from funicular.launch.problems import RecipeError
from funicular.launch.recipe import resolved_config
from funicular.launch.run_folder import RunFolder

_PARTS = {"generate": "generate_s", "learn": "learn_s", "sync": "weight_sync_s", "step": "step_s"}
"""Metric of each part, below `time/`."""


def earlier_times(folder: Path, model: str, shape: ModelShape, hardware: Hardware) -> str | None:
    """Median seconds of an earlier run's steps on CPUs against bounds, at that run's own counts and mean lengths.

    The first step is left out: it warms up.

    Args:
        model: `model.path` of the plan, whose shape is given.

    Returns:
        None: no run of this model stands there, or it has fewer than two steps.
    """
    run = RunFolder(path=folder)
    if not run.config.is_file() or not run.metrics.is_file():
        return None
    try:
        config = resolved_config(run.config)
    except RecipeError as error:  # of another version of this program
        return f"{folder}: not compared, because this version does not take its config.yaml: {error.problems[0]}"
    steps = [line for line in read_metrics(run.metrics) if "time/step_s" in line][1:]
    if config.model.path != model or not steps:
        return None
    _, room = engine_parts(config, shape, None)
    found = bounds(
        config,
        shape,
        hardware,
        room,
        Lengths(
            prompt=statistics.fmean(step["rollout/prompt_len_mean"] for step in steps),
            completion=statistics.fmean(step["rollout/completion_len_mean"] for step in steps),
        ),
        on_gpu=False,
    )
    measured = {
        part: statistics.median(step[f"time/{metric}"] for step in steps)
        for part, metric in _PARTS.items()
        if all(f"time/{metric}" in step for step in steps)
    }
    return f"{folder}, medians of {len(steps)} steps: {_sentence(measured, _least(found, config))}"


def _least(found: Bounds, config: Config) -> dict[str, float]:
    step_s = found.step_s(config.max_staleness)
    return {"generate": found.generate_s, "learn": found.learn_s, "sync": found.sync_s, "step": step_s}


def _sentence(measured: Mapping[str, float], least: Mapping[str, float]) -> str:
    return "; ".join(
        f"{part} {seconds:.2f} s, {seconds / least[part]:.1f} x the least" for part, seconds in measured.items()
    )
