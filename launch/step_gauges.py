"""Every metric of every step at Ray's Prometheus endpoint, from the driver: one place for all parts of a run.

What parts tell between steps is `live_gauges.py`, `actors/serving_gauges.py` and `actors/doing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from funicular.actors.kept_gauges import KeptGauges

STEP = "funicular_step"


def gauge_name(metric: str) -> str:
    """`reward/mean` is `funicular_reward_mean`. Ray writes `ray_` before it."""
    return "funicular_" + re.sub(r"[^a-zA-Z0-9]+", "_", metric).strip("_")


class StepGauges:
    """One gauge for each metric that the run ever logged, with the run's name as a tag."""

    def __init__(self, run_name: str) -> None:
        self._gauges = KeptGauges(run=run_name)

    def set(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the values of a step. Metrics of nodes are left out: Ray tells its own. Without Ray nothing happens."""
        self._gauges.set(STEP, "The newest training step", step)
        for name, value in metrics.items():
            if not name.startswith("system/"):
                text = f"{name} of the newest step that had it, see docs/metrics.md"
                self._gauges.set(gauge_name(name), text, value)
