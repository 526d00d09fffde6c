"""Every metric of every step at Ray's Prometheus endpoint, from the driver: one place for all parts of a run.

What generators tell between steps is `actors/serving_gauges.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STEP = "funicular_step"


def gauge_name(metric: str) -> str:
    """`reward/mean` is `funicular_reward_mean`. Ray writes `ray_` before it."""
    return "funicular_" + re.sub(r"[^a-zA-Z0-9]+", "_", metric).strip("_")


class StepGauges:
    """One gauge for each metric that the run ever logged, with the run's name as a tag."""

    def __init__(self, run_name: str) -> None:
        self._tags = {"run": run_name}
        self._gauges: dict[str, Any] = {}

    def set(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the values of a step. Metrics of nodes are left out: Ray tells its own. Without Ray nothing happens."""
        import ray

        if not ray.is_initialized():
            return
        self._set(STEP, "The newest training step", step)
        for name, value in metrics.items():
            if not name.startswith("system/"):
                self._set(gauge_name(name), f"{name} of the newest step that had it, see docs/metrics.md", value)

    def _set(self, name: str, description: str, value: float) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=description, tag_keys=("run",))
            self._gauges[name].set_default_tags(self._tags)
        self._gauges[name].set(value)
