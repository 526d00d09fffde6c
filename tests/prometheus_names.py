"""Names of metrics at Ray's Prometheus endpoint, for tests of what reads them."""

from __future__ import annotations

import re
from pathlib import Path

from funicular.actors.doing import DOING
from funicular.actors.serving_gauges import COUNTERS, GAUGES
from funicular.launch.step_gauges import STEP, gauge_name
from funicular.rewards.sandbox.types import Outcome

_METRICS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def generator_metrics() -> set[str]:
    """Of a generator's engine. Ray writes `ray_` before each, and `_total` behind counters."""
    counters = {f"ray_funicular_generator_{name}_total" for name, _ in COUNTERS.values()}
    return counters | {f"ray_funicular_generator_{name}" for name in GAUGES}


def part_metrics() -> set[str]:
    """What parts tell of themselves between steps."""
    return {
        f"ray_{DOING}",
        "ray_funicular_learner_memory_bytes",
    }  # the second's name stands in a module that loads torch


def live_metrics() -> set[str]:
    """Of every documented number that the driver tells between steps."""
    return {f"ray_{gauge_name(name)}" for name in _documented() if name.startswith("now/")}


def step_metrics() -> set[str]:
    """Of every documented metric of a step."""
    names = {name.replace("<set>", "held_out") for name in _documented() if not name.startswith("now/")}
    names |= {f"sandbox/outcome/{outcome}" for outcome in Outcome}
    return {f"ray_{STEP}"} | {f"ray_{gauge_name(name)}" for name in names if "<" not in name}


def _documented() -> list[str]:
    return re.findall(r"`([a-z]+/[a-z0-9_<>/]+)`", _METRICS.read_text(encoding="utf-8"))


def node_metrics() -> set[str]:
    """Ray's own, of nodes."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    return {f"ray_{name}" for name in METRICS_GAUGES if name.startswith("node_")}
