"""Statistics of engines: what is summed up, and what stands over several of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from funicular.actors.serving_stats import ServingStats, StatCollector, serving_metrics


def scheduler(running: int, waiting: int, used: float, queries: int = 0, hits: int = 0) -> Any:
    cache = SimpleNamespace(queries=queries, hits=hits)
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=used, prefix_cache_stats=cache
    )


def iteration(tokens: int, first: list[float], gaps: list[float], preempted: int = 0) -> Any:
    return SimpleNamespace(
        num_generation_tokens=tokens,
        num_preempted_reqs=preempted,
        time_to_first_tokens_iter=first,
        inter_token_latencies_iter=gaps,
    )


def test_iterations_are_summed_up_until_they_are_reported() -> None:
    collector = StatCollector(waiting_outside=lambda: 3)
    collector.add(scheduler(2, 1, 0.25, queries=10, hits=4), iteration(2, [0.5, 0.1], []))
    collector.add(scheduler(2, 0, 0.5), iteration(2, [], [0.02, 0.04], preempted=1))
    collector.add(None, iteration(1, [], [0.03]))
    report = collector.report()
    assert (report.iterations, report.running, report.waiting, report.tokens) == (2, 4, 7, 5)
    assert (report.prompt_tokens, report.prompt_tokens_cached, report.preemptions) == (10, 4, 1)
    assert (report.first_token_max_s, report.gap_max_s, report.cache_used_max) == (0.5, 0.04, 0.5)
    assert report.seconds > 0
    assert collector.report().tokens == 0


def test_means_are_over_all_requests_and_iterations_of_all_engines() -> None:
    one = ServingStats(seconds=2.0, iterations=1, tokens=10, running=4, first_tokens=1, first_token_s=0.1, gaps=1)
    two = ServingStats(seconds=4.0, iterations=3, tokens=20, running=4, first_tokens=3, first_token_s=0.9, gaps=1)
    one.gap_s, two.gap_s, two.gap_max_s, two.cache_used_max, two.waiting = 0.02, 0.04, 0.04, 0.75, 8
    found = serving_metrics([one, two])
    assert found["serving/first_token_mean_s"] == pytest.approx(0.25)
    assert found["serving/inter_token_mean_s"] == pytest.approx(0.03)
    assert found["serving/tokens_per_s"] == pytest.approx(10)
    assert (found["serving/running_mean"], found["serving/waiting_mean"]) == (2, 2)
    assert (found["serving/inter_token_max_s"], found["serving/kv_cache_max_frac"]) == (0.04, 0.75)
    assert "serving/prefix_hit_frac" not in found, "nothing was looked up"


def test_engines_that_did_nothing_give_no_numbers() -> None:
    assert serving_metrics([]) == serving_metrics([ServingStats()]) == {}
