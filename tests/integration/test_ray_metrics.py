"""What Prometheus can read of a run, and what nodes say of themselves, with a real Ray."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray
import torch

from funicular.actors.doing import Doing, told
from funicular.actors.generators import Generators
from funicular.actors.kept_gauges import KeptGauges
from funicular.actors.learner import MEMORY, memory_now
from funicular.actors.pool_judge import PoolJudge
from funicular.actors.sandbox_pool import sandbox_pool_actor
from funicular.actors.sandbox_pools import SandboxPools
from funicular.actors.scorer import ErrorStreaks
from funicular.actors.scorers import Scorers
from funicular.actors.serving_gauges import ServingGauges
from funicular.actors.serving_stats import ServingStats
from funicular.cluster.node_monitors import NodeMonitors
from funicular.launch.live_gauges import told_live
from funicular.launch.step_gauges import StepGauges
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.types import Program, StdioCase, StdioTests
from tests.fakes import fake_run
from tests.mlflow_server import wait_for
from tests.prometheus_names import generator_metrics, live_metrics

RAY_FORGETS_S = 45.0
"""Longer than Ray keeps a gauge that is set once: carried after 10 s, kept for 20."""

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


def test_what_is_told_once_stays_while_its_process_waits_and_ends_with_it() -> None:
    gauges = KeptGauges(run="long")
    gauges.set("funicular_kept", "A gauge of a test", 5.0, part="driver")
    hung = HangingPart.remote()
    began = time.time()
    hung.step.remote()

    def steps() -> list[str]:
        return re.findall(
            r'^ray_\w+since_seconds\{.*doing="step".*part="learner-7".*run="long".*\} (\S+)$', scraped(), re.M
        )

    wait_for(lambda: bool(steps()), 90, lambda: "a part to tell what it does")
    time.sleep(RAY_FORGETS_S)
    (since,) = steps()
    assert began - 5 <= float(since) <= began + 60, "still the moment at which it began"
    assert re.search(r'^ray_funicular_kept\{.*part="driver".*\} 5\.0$', scraped(), re.M)
    assert 'doing="idle"' not in scraped(), "what it does not do any more is gone"
    memory = re.findall(r'^ray_funicular_learner_memory_bytes\{.*kind="host".*\} (\S+)$', scraped(), re.M)
    assert [1e6 < float(value) < 1e11 for value in memory] == [True]
    ray.kill(hung)
    wait_for(lambda: not steps(), 90, lambda: "the gauges of a dead part to end")


async def test_all_that_a_run_does_now_is_at_rays_endpoint_under_documented_names(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=1)
    run.new_buffer(0)
    config = SandboxConfig(slots=2)
    pools = SandboxPools(
        lambda node, share: sandbox_pool_actor(node, 0).remote(config, share), {ray.nodes()[0]["NodeID"]: 2}
    )
    await pools.start()
    judge = PoolJudge(pools.handles, client="scorer-0", run="now", config=config)
    tests = StdioTests(cases=(StdioCase(stdin="", stdout="1\n"),))
    await asyncio.to_thread(judge, [Program(source="print(1)"), Program(source="print(2)")], tests)
    generators = Generators(
        lambda name: None,
        count=2,
        start_deadline_s=1.0,
        install_deadline_s=1.0,
        budget=run.budget,
    )
    generators._members[0].version = 3
    run.generators = generators
    run.scorers = Scorers(
        lambda name: None, count=2, deadline_s=1.0, streaks=ErrorStreaks(1), budget=run.budget, pools=pools
    )
    async with told_live(run):
        for _ in range(90):
            text = await asyncio.to_thread(scraped)
            if "ray_funicular_now_step{" in text:
                break
            await asyncio.sleep(1)
    told = set(re.findall(r"^(ray_funicular_now_\w+)\{", text, re.M))
    assert told == live_metrics()
    assert re.search(r'^ray_funicular_now_slots\{.*run="run".*state="free".*\} 2\.0$', text, re.M)
    assert re.search(r'^ray_funicular_now_engines\{.*role="generator".*state="starting".*\} 2\.0$', text, re.M)
    assert re.search(r'^ray_funicular_now_sandbox_judged\{.*outcome="wrong".*\} 1\.0$', text, re.M)
    assert re.search(r'^ray_funicular_now_sandbox_slots\{.*state="idle".*\} 2\.0$', text, re.M)
    for _, actor in pools.handles:
        ray.kill(actor)


@ray.remote(num_cpus=0)
class HangingPart:
    """A learner rank whose step never ends."""

    def __init__(self) -> None:
        self.gauges = KeptGauges(run="long", part="learner-7")
        self.doing = Doing(self.gauges)
        self.gauges.look(self.tell_memory)

    def tell_memory(self) -> None:
        for kind, value in memory_now(torch.device("cpu")).items():
            self.gauges.set(MEMORY, "Memory", value, kind=kind)

    @told
    def step(self) -> None:
        time.sleep(600)


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
