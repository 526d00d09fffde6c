"""How an engine serves: what vLLM tells of each of its iterations, summed up from one report to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_GIB = 1 << 30


@dataclass(slots=True, kw_only=True)
class ServingStats:
    """Sums over the iterations of one engine since the last report."""

    since: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """From `since` to the report."""
    iterations: int = 0
    tokens: int = 0
    first_tokens: int = 0
    first_token_s: float = 0.0
    """Sum of the times from a request's arrival in the engine to its first token."""
    first_token_max_s: float = 0.0
    gaps: int = 0
    """Times between two outputs of a request; speculative decoding may give several tokens in one."""
    gap_s: float = 0.0
    gap_max_s: float = 0.0
    running: int = 0
    """Sum over iterations of the requests that were computed."""
    waiting: int = 0
    """Sum over iterations of those that waited, in the engine or for a place in it."""
    cache_used_max: float = 0.0
    """Largest part of the KV cache that was in use."""
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    """Of those, found in the prefix cache."""
    preemptions: int = 0
    worker_memory: int = 0
    """Largest resident memory so far of the engine's largest process, bytes; 0: nobody looked."""


class StatCollector:
    """Takes in iterations, and gives what came together."""

    def __init__(self, waiting_outside: Callable[[], int]) -> None:
        """`waiting_outside`: requests that wait for a place in the engine."""
        self._waiting_outside = waiting_outside
        self._stats = ServingStats()

    def report(self) -> ServingStats:
        """What came since the last report."""
        stats, self._stats = self._stats, ServingStats()
        stats.seconds = self._stats.since - stats.since
        return stats

    def add(self, scheduler: Any | None, iteration: Any | None) -> None:
        """One call of vLLM's: its `SchedulerStats` and `IterationStats`, either of which may be missing."""
        stats = self._stats
        if scheduler is not None:
            stats.iterations += 1
            stats.running += scheduler.num_running_reqs
            stats.waiting += scheduler.num_waiting_reqs + self._waiting_outside()
            stats.cache_used_max = max(stats.cache_used_max, scheduler.kv_cache_usage)
            stats.prompt_tokens += scheduler.prefix_cache_stats.queries
            stats.prompt_tokens_cached += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            stats.tokens += iteration.num_generation_tokens
            stats.preemptions += iteration.num_preempted_reqs
            stats.first_tokens += len(iteration.time_to_first_tokens_iter)
            stats.first_token_s += sum(iteration.time_to_first_tokens_iter)
            stats.first_token_max_s = max((stats.first_token_max_s, *iteration.time_to_first_tokens_iter))
            stats.gaps += len(iteration.inter_token_latencies_iter)
            stats.gap_s += sum(iteration.inter_token_latencies_iter)
            stats.gap_max_s = max((stats.gap_max_s, *iteration.inter_token_latencies_iter))


def stat_loggers(name: str, collector: StatCollector) -> list[Any]:
    """What vLLM is given to tell its statistics: the collector, and Ray's Prometheus endpoint where there is a Ray.

    (vLLM's own logger for Ray needs Ray Serve.)
    """
    import ray

    takers = [collector.add]
    if ray.is_initialized():
        from funicular.actors.serving_gauges import ServingGauges

        takers.append(ServingGauges(name).add)
    return [_logger(taker) for taker in takers]


def _logger(take: Callable[[Any, Any], None]) -> Any:
    """A class of vLLM's hook that hands on what it is told."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            take(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Logger


def serving_metrics(reports: Sequence[ServingStats]) -> dict[str, float]:
    """Metrics over all engines; what nothing was measured of is left out."""

    def total(name: str) -> float:
        return float(sum(getattr(report, name) for report in reports))

    def largest(name: str) -> float:
        return max(getattr(report, name) for report in reports)

    out: dict[str, float] = {}
    if total("first_tokens"):
        out["serving/first_token_mean_s"] = total("first_token_s") / total("first_tokens")
        out["serving/first_token_max_s"] = largest("first_token_max_s")
    if total("gaps"):
        out["serving/inter_token_mean_s"] = total("gap_s") / total("gaps")
        out["serving/inter_token_max_s"] = largest("gap_max_s")
    if total("iterations"):
        out["serving/running_mean"] = total("running") / total("iterations")
        out["serving/waiting_mean"] = total("waiting") / total("iterations")
        out["serving/kv_cache_max_frac"] = largest("cache_used_max")
        out["serving/preemptions"] = total("preemptions")
        out["serving/tokens_per_s"] = sum(report.tokens / report.seconds for report in reports if report.seconds)
    if total("prompt_tokens"):
        out["serving/prefix_hit_frac"] = total("prompt_tokens_cached") / total("prompt_tokens")
    if largest_memory := max((report.worker_memory for report in reports), default=0):
        out["perf/engine_memory_gib"] = largest_memory / _GIB
    return out
