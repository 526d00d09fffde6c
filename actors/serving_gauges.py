"""An engine's statistics at Ray's Prometheus endpoint."""

from __future__ import annotations

import time
from typing import Any

from ray.util.metrics import Counter

from funicular.actors.kept_gauges import KeptGauges
from funicular.actors.serving_stats import ServingStats, StatCollector

PERIOD_S = 5.0

COUNTERS = {
    "tokens": ("tokens", "Tokens generated"),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens looked up in the prefix cache"),
    "prompt_tokens_cached": ("cached_prompt_tokens", "Prompt tokens found in the prefix cache"),
    "preemptions": ("preemptions", "Requests thrown out for want of KV cache"),
    "first_token_s": ("first_token_seconds", "Sum of seconds from arrival to first token"),
    "first_tokens": ("first_tokens", "First tokens"),
    "gap_s": ("inter_token_seconds", "Sum of seconds between two outputs of a request"),
    "gaps": ("inter_tokens", "Outputs of a request after its first"),
}
"""Field of ServingStats to name and description."""
GAUGES = {
    "running": "Requests computed at the same time",
    "waiting": "Requests that wait inside the engine",
    "kv_cache_frac": "Part of the KV cache in use",
}
"""Name to description, in the order in which `_tell` gives their values."""


class ServingGauges:
    """Takes in iterations, and tells Ray of them now and then: that costs more than an iteration's sums."""

    def __init__(self, generator: str) -> None:
        self._counters = {}
        for field, (name, text) in COUNTERS.items():
            self._counters[field] = Counter(_full(name), description=text, tag_keys=("generator",))
            self._counters[field].set_default_tags({"generator": generator})
        self._gauges = KeptGauges(generator=generator)
        self._collector = StatCollector(waiting_outside=lambda: 0)
        self._told_at = time.monotonic()

    def add(self, scheduler: Any | None, iteration: Any | None) -> None:
        """One call of vLLM's."""
        self._collector.add(scheduler, iteration)
        idle = scheduler is not None and scheduler.num_running_reqs == 0  # nothing may follow for long
        if idle or time.monotonic() - self._told_at > PERIOD_S:
            self._told_at = time.monotonic()
            self._tell(self._collector.report(), scheduler)

    def _tell(self, stats: ServingStats, scheduler: Any | None) -> None:
        for field, counter in self._counters.items():
            if value := getattr(stats, field):  # Ray refuses to count 0
                counter.inc(value)
        if scheduler is not None:
            now = (scheduler.num_running_reqs, scheduler.num_waiting_reqs, scheduler.kv_cache_usage)
            for (name, text), value in zip(GAUGES.items(), now, strict=True):
                self._gauges.set(_full(name), text, value)


def _full(name: str) -> str:
    return f"funicular_generator_{name}"
