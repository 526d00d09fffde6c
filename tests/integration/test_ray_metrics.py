"""What Prometheus can read of a run, and what nodes say of themselves, with a real Ray."""

from __future__ import annotations

import asyncio
import re
from urllib.request import urlopen

import pytest
import ray

from funicular.actors.serving_gauges import ServingGauges
from funicular.actors.serving_stats import ServingStats
from funicular.cluster.node_monitors import NodeMonitors
from funicular.launch.step_gauges import StepGauges
from tests.mlflow_server import wait_for
from tests.prometheus_names import generator_metrics

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


def scraped() -> str:
    """What Ray's endpoint on this node answers."""
    (node,) = ray.nodes()
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_every_metric_of_a_step_and_every_gauge_of_a_generator_is_at_rays_endpoint_under_its_name() -> None:
    gauges = StepGauges("my-run")
    gauges.set(3, {"reward/mean": 0.25, "sandbox/outcome/ok": 0.5, "system/10.0.0.1/cpu_frac": 0.5})
    gauges.set(4, {"reward/mean": 0.75})
    serving = ServingGauges("generator-0")
    serving._tell(
        ServingStats(
            tokens=1,
            prompt_tokens=1,
            prompt_tokens_cached=1,
            preemptions=1,
            first_token_s=1.0,
            first_tokens=1,
            gap_s=1.0,
            gaps=1,
        ),
        SchedulerSays(),
    )

    def there() -> bool:
        text = scraped()
        return "ray_funicular_reward_mean{" in text and "ray_funicular_generator_running{" in text

    wait_for(there, 90, lambda: "the gauges to reach the endpoint")
    text = scraped()
    assert re.search(r'^ray_funicular_reward_mean\{.*run="my-run".*\} 0\.75$', text, re.M)
    assert re.search(r"^ray_funicular_step\{.*\} 4\.0$", text, re.M)
    assert "ray_funicular_sandbox_outcome_ok{" in text
    assert "funicular_system" not in text, "Ray tells of nodes itself"
    assert set(re.findall(r"^(ray_funicular_generator_\w+)\{", text, re.M)) == generator_metrics()


class SchedulerSays:
    """As vLLM's SchedulerStats."""

    num_running_reqs = 2
    num_waiting_reqs = 1
    kv_cache_usage = 0.5


async def test_nodes_say_what_they_do_under_their_address() -> None:
    monitors = NodeMonitors()
    (node,) = ray.nodes()
    name = f"system/{node['NodeManagerAddress']}"
    found = await until_they_say(monitors)
    assert set(found) >= {f"{name}/cpu_frac", f"{name}/memory_frac", f"{name}/memory_gib"}
    assert 0 < found[f"{name}/cpu_frac"] <= 1
    assert 0 < found[f"{name}/memory_frac"] < 1
    assert 0.1 < found[f"{name}/memory_gib"] < 10_000

    for member in monitors._members.values():
        ray.kill(member.actor)
    assert await monitors.metrics() == {}, "a monitor that died is left out"
    assert f"{name}/cpu_frac" in await until_they_say(monitors), "and made anew"


async def until_they_say(monitors: NodeMonitors) -> dict[str, float]:
    """What they say when they have looked for the first time."""
    for _ in range(90):
        if found := await monitors.metrics():
            return found
        await asyncio.sleep(1)
    pytest.fail("no node said anything for 90 s")
