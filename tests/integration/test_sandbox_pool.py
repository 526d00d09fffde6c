"""Sandbox pools on a real Ray: death and return under the same handle, refusal when full, and what scorers see."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import ray

from funicular.actors import pool_judge
from funicular.actors.pool_judge import INLINE_BYTES, PoolJudge, PoolsDead
from funicular.actors.sandbox_pool import sandbox_pool_actor
from funicular.actors.sandbox_pools import SandboxPools
from funicular.actors.scorer import scorer_actor
from funicular.actors.types import GroupPayload
from funicular.cluster.session import sandbox_cpus_by_node
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.types import Outcome, Program, StdioCase, StdioTests
from funicular.rewards.types import Status, Task

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

GOOD = Program(source="print(int(input()) * 2)")
BAD = Program(source="print(int(input()) * 3)")
SLOW = Program(source="while True: pass")
TESTS = StdioTests(cases=(StdioCase(stdin="2\n", stdout="4\n"), StdioCase(stdin="5\n", stdout="10\n")))
PATIENCE_S = 120


@pytest.fixture(scope="module")
def pools(local_ray: None) -> Iterator[SandboxPools]:
    pools = make_pools(SandboxConfig(slots=2))
    asyncio.run(pools.start())
    yield pools
    kill(pools)


def make_pools(config: SandboxConfig) -> SandboxPools:
    slots = dict.fromkeys(sandbox_cpus_by_node(), config.slots)
    return SandboxPools(lambda node, share: sandbox_pool_actor(node, 3).remote(config, share), slots)


def kill(pools: SandboxPools) -> None:
    for _, actor in pools.handles:
        ray.kill(actor)


def judge_with(pools: SandboxPools, client: str = "scorer-0") -> PoolJudge:
    return PoolJudge(pools.handles, client=client, run="test", config=SandboxConfig(deadline_s=60.0))


def test_a_killed_pool_comes_back_under_the_same_handle_and_leaves_no_process(pools: SandboxPools) -> None:
    judge = judge_with(pools)
    assert [j.outcome for j in judge([GOOD, BAD], TESTS)] == [Outcome.OK, Outcome.WRONG]
    ((_, actor),) = pools.handles
    before = ray.get(actor.report.remote(), timeout=PATIENCE_S)
    pid = int(before.life.split()[0])
    slots = psutil.Process(pid).children(recursive=True)
    assert len(slots) >= 2
    os.kill(pid, signal.SIGKILL)

    assert [j.outcome for j in judge([GOOD, BAD], TESTS)] == [Outcome.OK, Outcome.WRONG]
    _, alive = psutil.wait_procs(slots, timeout=PATIENCE_S)
    assert alive == []
    metrics = asyncio.run(pools.metrics())
    assert metrics["sandbox/pool_restarts"] == 1
    assert metrics["sandbox/submissions"] == 2
    assert metrics["sandbox/outcome/ok"] == 0.5


def test_a_pool_that_dies_while_it_judges_judges_again(pools: SandboxPools) -> None:
    ((_, actor),) = pools.handles
    pid = int(ray.get(actor.report.remote(), timeout=PATIENCE_S).life.split()[0])
    with ThreadPoolExecutor(1) as thread:
        verdicts = thread.submit(judge_with(pools), [SLOW, GOOD], TESTS)
        while not ray.get(actor.report.remote(), timeout=PATIENCE_S).stats.busy_s:
            pass
        os.kill(pid, signal.SIGKILL)
        slow, good = verdicts.result(timeout=PATIENCE_S)
    assert slow.outcome in (Outcome.CPU, Outcome.WALL)
    assert good.outcome is Outcome.OK


def test_a_pool_that_hangs_sends_its_batch_to_another(pools: SandboxPools, monkeypatch: pytest.MonkeyPatch) -> None:
    others = make_pools(SandboxConfig(slots=1))
    asyncio.run(others.start())
    ((node, hung),) = others.handles
    pid = int(ray.get(hung.report.remote(), timeout=PATIENCE_S).life.split()[0])
    monkeypatch.setattr(pool_judge, "PULSE_S", 2.0)
    judge = PoolJudge([(node, hung), *pools.handles], client="scorer-9", run="test", config=SandboxConfig())
    monkeypatch.setattr(judge, "_turn", 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [j.outcome for j in judge([GOOD, BAD], TESTS)] == [Outcome.OK, Outcome.WRONG]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert set(judge._asked_last_until) == {hung}
    kill(others)


def test_large_test_sets_travel_by_reference(pools: SandboxPools) -> None:
    text = "x" * INLINE_BYTES
    tests = StdioTests(cases=(StdioCase(stdin=text, stdout=text),))
    judge = judge_with(pools)
    for _ in range(2):
        assert judge([Program(source="print(input())")], tests)[0].outcome is Outcome.OK
    assert judge._pack(tests).pickled is None


def test_scorers_that_find_the_pool_full_come_back_until_it_has_room(local_ray: None) -> None:
    pools = make_pools(SandboxConfig(slots=1, queue=1))
    asyncio.run(pools.start())
    with ThreadPoolExecutor(4) as threads:
        batches = [threads.submit(judge_with(pools, f"scorer-{n}"), [GOOD, BAD, GOOD], TESTS) for n in range(4)]
        for batch in batches:
            outcomes = [judgement.outcome for judgement in batch.result(timeout=PATIENCE_S)]
            assert outcomes == [Outcome.OK, Outcome.WRONG, Outcome.OK]
    assert asyncio.run(pools.metrics())["sandbox/submissions"] == 12
    kill(pools)


def test_a_new_batch_of_a_scorer_takes_the_place_of_the_one_that_it_gave_up(local_ray: None) -> None:
    pools = make_pools(SandboxConfig(slots=1))
    asyncio.run(pools.start())
    with ThreadPoolExecutor(1) as thread:
        given_up = thread.submit(judge_with(pools), [SLOW] * 20, TESTS)
        ((_, actor),) = pools.handles
        while not ray.get(actor.report.remote(), timeout=PATIENCE_S).stats.waiting:
            pass
        assert judge_with(pools)([GOOD], TESTS)[0].outcome is Outcome.OK
        dropped = [j for j in given_up.result(timeout=PATIENCE_S) if j.outcome is Outcome.INFRA_ERROR]
    assert len(dropped) >= 10
    assert "withdrawn" in dropped[0].detail
    kill(pools)


def test_when_every_pool_is_gone_the_scorer_says_so(local_ray: None) -> None:
    pools = make_pools(SandboxConfig(slots=1))
    asyncio.run(pools.start())
    kill(pools)
    with pytest.raises(PoolsDead, match="no sandbox pool answers"):
        judge_with(pools)([GOOD], TESTS)


def test_a_level_that_the_node_does_not_reach_is_an_error_of_the_recipe(local_ray: None) -> None:
    pools = make_pools(SandboxConfig(slots=1, isolation="L1", min_level="L3"))
    with pytest.raises(IsolationUnavailable, match=r"sandbox\.min_level=L3"):
        asyncio.run(pools.start())
    kill(pools)


def test_a_scorer_turns_programs_into_verdicts(pools: SandboxPools, tmp_path_factory: pytest.TempPathFactory) -> None:
    tests = {"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]}
    task = Task(task_id="t", prompt="Double it.", answer=None, verifier="code", columns={"tests": tests})
    texts = tuple(f"So:\n```python\n{program.source}\n```\n" for program in (GOOD, BAD))
    payload = GroupPayload(
        group_id="g",
        prompt_ids=np.arange(3, dtype=np.int32),
        token_ids=np.arange(4, dtype=np.int32),
        offsets=np.array([0, 2, 4]),
        generator_logprobs=np.zeros(4, dtype=np.float32),
        token_versions=np.zeros(4, dtype=np.int32),
        texts=texts,
    )
    folder = str(tmp_path_factory.mktemp("recipe"))
    scorer = scorer_actor().options(num_cpus=0).remote(RewardConfig(verifier="code"), folder, judge_with(pools))
    report = ray.get(scorer.score.remote(task, payload), timeout=PATIENCE_S)
    assert [verdict.status for verdict in report.verdicts_G] == [Status.PASSED, Status.FAILED]
    assert [verdict.reward for verdict in report.verdicts_G] == [1.0, 0.0]
    assert report.verdicts_G[1].details["outcome"] == "wrong"
    ray.kill(scorer)
