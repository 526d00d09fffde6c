"""One run in which every kind of part is killed, and weights at every state; real processes, real parts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funicular.actors.generator import generator_actor
from funicular.actors.types import GroupPayload
from funicular.cluster.session import connect, disconnect
from funicular.launch.build import build, demand
from funicular.launch.config import Config
from funicular.launch.ledger import Ledger, audit, read_events
from funicular.launch.loop import train
from funicular.launch.prepared import Prepared
from funicular.launch.recipe import load_recipe
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder
from funicular.launch.tasks import load_tasks
from tests.fakes import FakeTracker
from tests.faulty_link import FakeFaultyLink, NotedGenerators, TimedSync, pid_of
from tests.publish_helpers import token_logprobs
from tests.tiny_run import tiny_recipe

DEADLINE_S = 60.0
TOLERANCE = 1e-4
OF_TWO_WORKERS = "generator-2"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


async def kill(actor: Any) -> None:
    os.kill(await pid_of(actor), signal.SIGKILL)


async def after_step(run: Run, step: int, fault: Callable[[], Awaitable[None]]) -> None:
    while run.step < step:
        await asyncio.sleep(0.02)
    await fault()


async def live_run(folder: Path, *overrides: str) -> tuple[Run, FakeFaultyLink, NotedGenerators, TimedSync]:
    """A run with two generators of one engine process, and one of a process for each of two workers."""
    loaded = load_recipe([str(tiny_recipe(folder))], list(overrides))
    config = loaded.config
    run_folder = RunFolder.create(folder / "run")
    session = connect(config.cluster, demand(config))
    prepared = Prepared(
        folder=run_folder,
        recipe_folder=loaded.folder,
        tasks=load_tasks(config.data, config.reward.verifier, config.seed),
        model_folder=Path(config.model.path),
        snapshot=None,
    )
    tracker: Any = FakeTracker()
    without_generators = replace(config, generator=replace(config.generator, count=0))
    ledger = Ledger(run_folder.ledger)
    run = await build(without_generators, prepared, use_gpu=session.use_gpu, tracker=tracker, ledger=ledger)
    generators = NotedGenerators(
        lambda name: make_generator(config, name, session.use_gpu),
        count=config.generator.count,
        start_deadline_s=config.generator.start_deadline_s,
        install_deadline_s=config.weight_sync.deadline_s + 15,
        budget=run.budget,
    )
    await generators.start()
    link = FakeFaultyLink(run.learners, generators)
    sync = TimedSync(link, generators, attempts=config.weight_sync.attempts)
    run.generators, run.weights, run.config = generators, sync, config
    return run, link, generators, sync


def make_generator(config: Config, name: str, use_gpu: bool) -> Any:
    workers = 2 if name == OF_TWO_WORKERS else 1
    return (
        generator_actor()
        .options(num_cpus=1)  # what `demand` has asked for
        .remote(
            name,
            replace(config.generator, tensor_parallel_size=workers),
            config.weight_sync,
            model_folder=config.model.path,
            chat_template=config.model.chat_template,
            seed=int(name[-1]),
            use_gpu=use_gpu,
        )
    )


async def test_every_kind_of_part_dies_and_the_run_goes_on(tmp_path: Path) -> None:
    try:
        run, link, generators, sync = await live_run(
            tmp_path,
            "max_steps=200",
            "generator.count=3",
            "generator.max_completion_tokens=32",
            f"weight_sync.deadline_s={DEADLINE_S}",
            "weight_sync.bucket_mib=1",
            "evaluation.tasks=0",
            "max_staleness=1",
            "checkpoint.every=1",
            "cluster.max_restarts=100",
        )
        link.faults = [
            ("a byte", link.corrupt_a_byte),
            ("a bucket", link.drop_a_bucket),
            link.kill_in("loading", "generator-0", "actor"),
            link.kill_in("loading", "generator-1", "core"),
            ("learner while packing", link.kill_the_rank_that_sends),
            link.kill_in("loading", OF_TWO_WORKERS, "1"),
            link.kill_in("verifying", "generator-0", "actor"),
            link.kill_learner_in("loading"),
            link.kill_in("verifying", "generator-1", "core"),
            link.kill_in("verifying", OF_TWO_WORKERS, "1"),
            link.kill_learner_in("verifying"),
            link.kill_in("deciding", "generator-0", "actor"),
            link.kill_in("deciding", "generator-1", "core"),
            link.kill_learner_in("deciding"),
            link.kill_in("deciding", OF_TWO_WORKERS, "1"),
            link.break_broadcast("damaged"),
            link.break_broadcast("dies"),
            link.kill_in("loading", OF_TWO_WORKERS, "1"),
            link.kill_learner_in("loading"),
        ]
        planned = [what for what, _ in link.faults]
        injected = [
            asyncio.create_task(after_step(run, 3, lambda: kill(run.scorers._members[0].actor))),  # type: ignore[attr-defined]
            asyncio.create_task(after_step(run, 5, lambda: kill(run.buffer._actor))),  # type: ignore[attr-defined]
            asyncio.create_task(stop_after_the_last(run, link, sync)),
        ]
        assert await asyncio.wait_for(train(run), 900) == "stopped"
        await asyncio.gather(*injected, *link.checks)
        payloads = [await payload for payload in generators.payloads]
    finally:
        disconnect()
    assert [death.what for death in link.deaths] == planned
    assert_the_run_went_on(run, link, sync)
    by_broadcast = [record for record in sync.records if record.broadcast_bytes]
    assert {record.broadcast_bytes == record.total_bytes for record in by_broadcast} == {True}
    assert_the_ledger_is_whole(run, tmp_path / "run" / "ledger.jsonl", sync)
    assert_each_token_is_of_the_version_it_names(payloads, link, Path(run.config.model.path))


async def stop_after_the_last(run: Run, link: FakeFaultyLink, sync: TimedSync) -> None:
    """End the run some versions later."""
    while link.faults or sync.version < link.deaths[-1].version + 2:
        await asyncio.sleep(0.1)
    run.stop.set()


def assert_the_run_went_on(run: Run, link: FakeFaultyLink, sync: TimedSync) -> None:
    died = {death.split(":")[0] for death in run.budget.deaths}
    assert {"scorer-0", "buffer", "generator-0", "generator-1", "generator-2", "learner"} <= died
    for death in link.deaths:
        ended, outcome = sync.ended[death.version]
        assert ended - death.moment < DEADLINE_S, f"{death.what}: published {ended - death.moment:.0f} s later"
        expected = "learner lost" if death.what == "learner while packing" else "committed"
        assert outcome == expected, death.what


def assert_the_ledger_is_whole(run: Run, ledger: Path, sync: TimedSync) -> None:
    account = audit(ledger)
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, run.step + 1))
    assert max(m["async/staleness_max"] for _, m in run.tracker.lines if "async/staleness_max" in m) <= 1  # type: ignore[attr-defined]
    published = [event["version"] for event in read_events(ledger) if event["event"] == "published"]
    assert published == sorted(set(published))
    assert published == sorted(version for version, (_, outcome) in sync.ended.items() if outcome == "committed")


def assert_each_token_is_of_the_version_it_names(
    payloads: list[GroupPayload], link: FakeFaultyLink, model_folder: Path
) -> None:
    """What is served in the middle of an install would have other log-probabilities than those of any version."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    named = sorted({int(version) for payload in payloads for version in payload.token_versions})
    assert len(named) > len(link.deaths) / 2
    for version in named:
        lost = model.load_state_dict(link.sent[version], strict=False)
        assert lost.missing_keys in ([], ["lm_head.weight"])  # tied
        for payload in payloads:
            for i in range(len(payload.offsets) - 1):
                part = payload.completion(i)
                mine = payload.token_versions[part] == version
                if mine.any():
                    tokens = [*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]
                    theirs = token_logprobs(model, tokens)[len(payload.prompt_ids) - 1 :]
                    said = payload.generator_logprobs[part]
                    np.testing.assert_allclose(said[mine], theirs[mine], atol=TOLERANCE, rtol=0)
