"""What a run does between two steps, at Ray's Prometheus endpoint: the driver's part.

Learner ranks, scorers and weight sync tell what they do in their own processes (`actors/doing.py`), engines how they
serve (`actors/serving_gauges.py`). Of the sandbox the driver tells: Prometheus need not reach its nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from funicular.actors.readings import Reading
from funicular.launch.run import Run
from funicular.launch.step_gauges import gauge_name

log = logging.getLogger(__name__)

PERIOD_S = 5.0
"""Less than the 20 s after which Ray forgets a gauge: what the driver, or a part, does not tell any more is gone."""


@asynccontextmanager
async def told_live(run: Run) -> AsyncIterator[None]:
    """Within it a task on the side tells what `run` does. Neither waits for the other."""
    telling = asyncio.create_task(_keep_telling(run, LiveGauges(run.config.name)))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


class LiveGauges:
    """A gauge for each name of a reading, with the run's name as a tag besides the reading's own."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._gauges: dict[str, Any] = {}

    def set(self, readings: Sequence[Reading]) -> None:
        """Tell them."""
        from ray.util.metrics import Gauge

        for reading in readings:
            name = gauge_name(reading.name)
            if name not in self._gauges:
                text = f"{reading.name}, see docs/metrics.md"
                self._gauges[name] = Gauge(name, description=text, tag_keys=("run", *reading.labels))
            self._gauges[name].set(reading.value, {"run": self._run_name, **reading.labels})


async def _keep_telling(run: Run, gauges: LiveGauges) -> None:
    while True:
        try:
            gauges.set(await run.now())
        except Exception:  # of whatever kind: nobody who watches may stop a run
            log.exception("telling what the run does")
        await asyncio.sleep(PERIOD_S)
