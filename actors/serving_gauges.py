"""An engine's statistics at Ray's Prometheus endpoint."""

from __future__ import annotations

import time
from typing import Any

from ray.util.metrics import Counter, Gauge

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
"""Name to description."""


class ServingGauges:
    """Takes in iterations, and tells Ray of them now and then: that costs more than an iteration's sums."""

    def __init__(self, generator: str) -> None:
        tags = {"generator": generator}

        def made(kind: type[Counter | Gauge], name: str, text: str) -> Any:
            metric = kind(f"funicular_generator_{name}", description=text, tag_keys=("generator",))
            metric.set_default_tags(tags)
            return metric

        self._counters = {field: made(Counter, name, text) for field, (name, text) in COUNTERS.items()}
        self._gauges = {name: made(Gauge, name, text) for name, text in GAUGES.items()}
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
            self._gauges["running"].set(scheduler.num_running_reqs)
            self._gauges["waiting"].set(scheduler.num_waiting_reqs)
            self._gauges["kv_cache_frac"].set(scheduler.kv_cache_usage)
