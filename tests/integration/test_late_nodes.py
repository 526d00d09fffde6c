"""Nodes for the sandbox that join and leave a real Ray while scorers judge code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from funicular.actors.sandbox_pools import SandboxPools
from funicular.actors.scorers import Scorers
from funicular.actors.types import GroupPayload
from funicular.cluster import session
from funicular.cluster.config import ClusterConfig
from funicular.cluster.session import ClusterTooSmall, ask_for_sandbox, disconnect, wait_for_sandbox
from funicular.cluster.supervise import RestartBudget
from funicular.launch import build
from funicular.launch.build import make_scorers, start_pools
from funicular.launch.config import Config
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.types import Status, Task

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PATIENCE_S = 240
TASK = Task(
    task_id="t",
    prompt="Double it.",
    answer=None,
    verifier="code",
    columns={"tests": {"inputs": ["2\n"], "outputs": ["4\n"]}},
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with CPUs for scorers; nodes are added by the test."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 150 << 20})
    ray.init(
        address=made.address,
        namespace=session.NAMESPACE,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        log_to_driver=False,
    )
    yield made
    disconnect()
    made.shutdown()


def add_node(cluster: Cluster) -> Any:
    """One for the sandbox, as the manifests start it: no CPUs."""
    return cluster.add_node(num_cpus=0, resources={"sandbox": 1}, object_store_memory=80 << 20)


def recipe(**cluster: Any) -> Config:
    return Config(
        reward=RewardConfig(verifier="code", scorers=1),
        sandbox=SandboxConfig(deadline_s=60.0),
        cluster=ClusterConfig(**cluster),
    )


async def judged(scorers: Scorers) -> Status:
    """What a right program gets."""
    payload = GroupPayload(
        group_id="g",
        prompt_ids=np.arange(3, dtype=np.int32),
        token_ids=np.arange(2, dtype=np.int32),
        offsets=np.array([0, 2]),
        generator_logprobs=np.zeros(2, dtype=np.float32),
        token_versions=np.zeros(2, dtype=np.int32),
        texts=("```python\nprint(int(input()) * 2)\n```",),
    )
    report = await scorers.score(TASK, ray.put(payload))
    return report.verdicts_G[0].status


async def until(pools: SandboxPools, nodes: set[str]) -> None:
    """Until pools of exactly these nodes are asked."""
    async with asyncio.timeout(PATIENCE_S):
        while {node for node, _ in pools.handles} != nodes:
            await asyncio.sleep(0.5)


def submissions(pools: SandboxPools) -> dict[str, int]:
    """Judged so far, by node."""
    reports = ray.get([actor.report.remote() for _, actor in pools.handles], timeout=PATIENCE_S)
    return {node: report.stats.submissions for (node, _), report in zip(pools.handles, reports, strict=True)}


async def test_a_node_that_joins_is_used_and_one_that_leaves_is_not_in_the_way(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = add_node(cluster)
    said: list[str] = []
    budget = RestartBudget(0)
    pools = await start_pools(recipe(), [TASK], said.append)
    assert pools is not None
    scorers = make_scorers(recipe(), tmp_path, pools, budget, completions=1)
    assert {node for node, _ in pools.handles} == {first.node_id}
    assert await judged(scorers) is Status.PASSED

    second = add_node(cluster)
    await until(pools, {first.node_id, second.node_id})
    assert said[-1].startswith("joined: sandbox L")
    for _ in range(4):
        assert await judged(scorers) is Status.PASSED
    assert submissions(pools)[second.node_id] >= 1, "scorers take turns among pools of other nodes"

    cluster.remove_node(first, False)
    for _ in range(3):
        assert await judged(scorers) is Status.PASSED, "at once: nobody has looked at the nodes yet"
    await until(pools, {second.node_id})

    cluster.remove_node(second, False)
    await until(pools, set())
    waits = asyncio.create_task(judged(scorers))
    await asyncio.sleep(1)
    assert not waits.done()
    third = add_node(cluster)
    async with asyncio.timeout(PATIENCE_S):
        assert await waits is Status.PASSED, "the group waited for a node"
    assert {node for node, _ in pools.handles} == {third.node_id}
    assert budget.deaths == []


async def test_a_node_that_joins_below_the_level_is_named_and_never_asked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_node(cluster)
    said: list[str] = []
    pools = await start_pools(recipe(), [TASK], said.append)
    assert pools is not None
    handles = pools.handles
    make = pools._make_actor
    demanding = SandboxConfig(
        isolation="L1", min_level="L3"
    )  # what no slot at L1 reaches, as on a node of a lower kind
    from funicular.actors.sandbox_pool import sandbox_pool_actor

    pools._make_actor = lambda node, slots: sandbox_pool_actor(node, 0).remote(demanding, slots)
    late = add_node(cluster)
    async with asyncio.timeout(PATIENCE_S):
        while not any("gets no sandbox pool" in sentence for sentence in said):
            await asyncio.sleep(0.5)
    assert f"node {late.node_id[:8]} has joined and gets no sandbox pool: " in said[-1]
    assert "sandbox.min_level=L3" in said[-1]
    assert pools.handles == handles
    pools._make_actor = make


def constraints() -> list[tuple[dict[str, float], int]]:
    """What Ray's autoscaler, of version 2, is asked to keep."""
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    state = get_cluster_resource_state(global_worker.gcs_client)
    found = [request for constraint in state.cluster_resource_constraints for request in constraint.resource_requests]
    return [(dict(item.request.resources_bundle), item.count) for item in found]


async def test_a_run_that_asks_for_nodes_begins_with_the_first_that_comes_and_keeps_off_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(build, "ask_for_sandbox", asked.append)
    asks = recipe(sandbox_places=16, address=cluster.address, room_deadline_s=0.1)
    with pytest.raises(ClusterTooSmall, match=r"cluster\.sandbox_places"):
        await start_pools(asks, [TASK], lambda sentence: None)
    node = add_node(cluster)
    pools = await start_pools(asks, [TASK], lambda sentence: None)
    assert pools is not None
    assert {there for there, _ in pools.handles} == {node.node_id}, "not the head, although it has CPUs"
    assert asked == [16, 16]


def test_the_request_reaches_the_autoscaler_and_is_taken_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.autoscaler.v2.utils.cached_is_autoscaler_v2", True)  # as KubeRay's `version: v2` has it
    ask_for_sandbox(32)
    assert constraints() == [({"sandbox": 1.0}, 32)]
    with pytest.raises(ClusterTooSmall, match=r"no node .* came within 0 s \(cluster\.room_deadline_s\)"):
        wait_for_sandbox(0.0)
    node = add_node(cluster)
    assert wait_for_sandbox(60.0) == {node.node_id: 1}
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    disconnect()
    assert constraints() == []
