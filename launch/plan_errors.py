"""A plan's memory against a run's: written into the run folder at its end, and read again by the next plan.

Of runs on CPUs, where the kernel says what a process took. On GPUs nothing is compared yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from funicular.actors.model_shape import ModelShape
from funicular.launch.config import Config
from funicular.launch.metrics_file import read_metrics
from funicular.launch.plan_memory import engine_parts, learner_parts
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder

FILE = "memory.json"
_MEASURED = {"learner": "perf/learner_memory_gib", "engine": "perf/engine_memory_gib"}
"""Metric of the largest learner rank and of the largest engine process: peaks, so that the last is the largest."""
_GIB = 1 << 30


def predicted_memory(config: Config, shape: ModelShape) -> dict[str, float]:
    """GiB of a learner rank and of an engine worker on a CPU."""
    engine, _ = engine_parts(config, shape, None)
    parts = {"learner": learner_parts(config, shape, on_gpu=False), "engine": engine}
    return {name: sum(part.nbytes for part in found) / _GIB for name, found in parts.items()}


def report_memory(run: Run, folder: RunFolder) -> None:
    """Log the plan's relative errors, say them, and write them beside the run; nothing where there is no plan."""
    if run.model_shape is None:
        return
    predicted = predicted_memory(run.config, run.model_shape)
    measured = _measured(folder.metrics)
    errors = {name: predicted[name] / value - 1 for name, value in measured.items()}
    if not errors:
        return
    figures = {"gib": {name: {"predicted": predicted[name], "measured": measured[name]} for name in errors}}
    (folder.path / FILE).write_text(json.dumps({"step": run.step, **figures}, indent=1) + "\n")
    run.tracker.log(run.step, {f"plan/{name}_memory_error": error for name, error in errors.items()})
    run.tracker.event(f"memory planned: {_sentence(figures['gib'])}")


def earlier_error(folder: Path) -> str | None:
    """What the plan of an earlier run in this folder was worth; None: there is no such file."""
    file = folder / FILE
    if not file.is_file():
        return None
    return f"{folder}: {_sentence(json.loads(file.read_text())['gib'])}"


def _measured(metrics: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in read_metrics(metrics):
        found |= {name: line[metric] for name, metric in _MEASURED.items() if metric in line}
    return found


def _sentence(gib: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{name} {of['predicted']:.2f} GiB, measured {of['measured']:.2f} ({of['predicted'] / of['measured'] - 1:+.0%})"
        for name, of in gib.items()
    )
