"""Runs whose learner and generators take turns (`cluster.colocate`): deaths in every turn, and stop and resume.

On CPUs vLLM frees no memory in its sleep and ranks leave nothing, so what is tested is the order of things.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from funicular.actors.gpu_turns import Side
from funicular.cluster.session import connect, disconnect
from funicular.launch.build import build, demand
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.ledger import Ledger, audit, read_events
from funicular.launch.loop import train
from funicular.launch.prepared import Prepared
from funicular.launch.recipe import load_recipe
from funicular.launch.resume_point import find_snapshot
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder
from funicular.launch.tasks import load_tasks
from tests.fakes import FakeTracker
from tests.faulty_link import pid_of
from tests.tiny_run import tiny_recipe

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

OVERRIDES = [
    "cluster.colocate=true",
    "max_staleness=0",
    "generator.count=2",
    "learner.ranks=2",
    "learner.zero_stage=2",
    "generator.max_completion_tokens=64",
    "algorithm.groups_per_step=4",
    "algorithm.max_replacements=10",
    "cluster.max_restarts=100",
    "evaluation.tasks=4",
    "checkpoint.every=1",
]


async def live_run(folder: Path, recipe: Path, *overrides: str) -> Run:
    loaded = load_recipe([str(recipe)], [*OVERRIDES, *overrides])
    config = loaded.config
    run_folder = RunFolder.create(folder / "run")
    session = connect(config.cluster, demand(config))
    tracker: Any = FakeTracker()
    prepared = Prepared(
        folder=run_folder,
        recipe_folder=loaded.folder,
        tasks=load_tasks(config.data, config.reward.verifier, config.seed),
        model_folder=Path(config.model.path),
        snapshot=find_snapshot(config, run_folder, Checkpoints(run_folder.checkpoints, config.checkpoint, None)),
    )
    ledger = Ledger(run_folder.ledger)
    return await build(config, prepared, use_gpu=session.use_gpu, roles=session.roles, tracker=tracker, ledger=ledger)


class Faults:
    """Kills one part after the other, each when a certain call is made of learner or generators.

    While that call is made; and only when all parts are there, so that the run always goes on.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.learners: Any = run.learners._learners  # type: ignore[attr-defined]
        self.generators: Any = run.generators._generators  # type: ignore[attr-defined]
        self.planned: list[tuple[str, Callable[[], list[Any]]]] = []
        self.done: list[tuple[str, int]] = []
        """Call, and step of the run."""
        leave = run.generators._turns._leave  # type: ignore[attr-defined]
        leave[Side.LEARNERS] = self._watched("leave", leave[Side.LEARNERS])
        leave[Side.GENERATORS] = self._watched("sleep", leave[Side.GENERATORS])
        for part, method in (
            (self.learners, "return_to_gpus"),
            (self.learners, "step"),
            (self.learners, "pack"),
            (self.learners, "save"),
            (self.generators, "wake"),
            (self.generators, "install"),
            (self.generators, "generate"),
        ):
            setattr(part, method, self._watched(method, getattr(part, method)))

    def _watched(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(*arguments: Any, **options: Any) -> Any:
            if not self.planned or self.planned[0][0] != name or not self._all_there():
                return await method(*arguments, **options)
            fault = self.planned.pop(0)
            try:
                pids = [await pid_of(actor) for actor in fault[1]()]
            except RayActorError:  # the fault before has not been noticed yet
                self.planned.insert(0, fault)
                return await method(*arguments, **options)
            self.done.append((name, self.run.step))
            doing = asyncio.ensure_future(method(*arguments, **options))
            await asyncio.sleep(len(self.done) % 3 * 0.01)  # until it is done, as it comes
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            return await doing

        return watched

    def _all_there(self) -> bool:
        return all(member.state != "starting" for member in self.generators._members)

    def rank(self) -> list[Any]:
        return [self.learners._actors[-1]]

    def generator(self) -> list[Any]:
        return [self.generators._members[0].actor]

    def both_generators(self) -> list[Any]:
        return [member.actor for member in self.generators._members]

    async def stop_after(self, count: int) -> None:
        while len(self.done) < count or self.run.step < self.done[-1][1] + 2:
            await asyncio.sleep(0.05)
        self.run.stop.set()


async def test_deaths_in_every_turn_and_stop_and_resume(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    try:
        run = await live_run(tmp_path, recipe, "max_steps=1000")
        faults = Faults(run)
        planned = [
            ("generate", faults.generator),
            ("return_to_gpus", faults.rank),
            ("step", faults.both_generators),
            ("pack", faults.rank),
            ("leave", faults.rank),
            ("wake", faults.generator),
            ("save", faults.both_generators),
        ]
        faults.planned = list(planned)
        stopping = asyncio.create_task(faults.stop_after(len(planned)))
        assert await asyncio.wait_for(train(run), 1000) == "stopped"
        await stopping
        await run.checkpoints.settle()
        assert [name for name, _ in faults.done] == [name for name, _ in planned]
        died = [death.split(":")[0] for death in run.budget.deaths]
        assert died.count("learner") == 3
        assert died.count("generator-0") == 4
        stopped_at = run.step
        assert_whole(tmp_path / "run" / "ledger.jsonl", run)
        run.accounts.ledger.close()
    finally:
        disconnect()
    try:
        run = await live_run(tmp_path, recipe, f"max_steps={stopped_at + 2}")
        assert await asyncio.wait_for(train(run), 300) == "finished"
        assert run.step == stopped_at + 2
        assert_whole(tmp_path / "run" / "ledger.jsonl", run)
    finally:
        disconnect()


def assert_whole(ledger: Path, run: Run) -> None:
    account = audit(ledger)
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, run.step + 1))
    published = [event["version"] for event in read_events(ledger) if event["event"] == "published"]
    assert published == sorted(set(published))
    lines: Any = run.tracker.lines  # type: ignore[attr-defined]
    assert max(m["async/staleness_max"] for _, m in lines if "async/staleness_max" in m) == 0
    assert max(m["mismatch/logprob_abs_mean"] for _, m in lines if "mismatch/logprob_abs_mean" in m) < 1e-3
