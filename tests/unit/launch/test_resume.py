"""Going back to a checkpoint on purpose, and ending a run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from funicular.actors.errors import LearnerLost, RunStopped
from funicular.launch.checkpoint_store import Store
from funicular.launch.checkpoints import Checkpoints, Snapshot, read_snapshot
from funicular.launch.config import CheckpointConfig, Config
from funicular.launch.finish import finish, model_of_step
from funicular.launch.ledger import audit, read_events
from funicular.launch.loop import train
from funicular.launch.resume_point import find_snapshot
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder
from funicular.launch.train import _already_done
from tests.fake_store import faulty_store
from tests.fakes import fake_run


def snapshot_of(config: Config, folder: RunFolder) -> Snapshot | None:
    return find_snapshot(config, folder, Checkpoints(folder.checkpoints, config.checkpoint))


async def test_going_back_on_purpose_forgets_what_came_after(tmp_path: Path) -> None:
    first = fake_run(tmp_path, max_steps=8, checkpoint_every=2)
    await train(first)
    run = fake_run(tmp_path, max_steps=10, checkpoint_every=100)
    run.snapshot = read_snapshot(tmp_path / "checkpoints" / "step_000006")

    def die_once(step, groups):
        if step == 8 and not run.learners.restarts:
            raise LearnerLost("rank 0 died")

    run.learners.before_step = die_once
    await train(run)
    account = audit(tmp_path / "ledger.jsonl")
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, 11))
    assert [step for step, _ in run.learners.trained] == list(range(1, 11)), "no step is trained twice or left out"


async def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=6, max_staleness=2, checkpoint_every=2)
    await train(run)
    other = fake_run(tmp_path, max_steps=8, max_staleness=2, tasks=1)
    with pytest.raises(RunStopped, match=r"not in the training data.*`data` and `seed`"):
        await train(other)


@pytest.mark.parametrize(("resume", "says"), [("never", "resume=never"), ("elsewhere/step_000002", "its own")])
def test_what_resume_cannot_mean_is_refused(tmp_path: Path, resume: str, says: str) -> None:
    folder = RunFolder.create(tmp_path)
    folder.ledger.write_text('{"event":"attempt","attempt":1}\n')
    with pytest.raises(ValueError, match=says):
        snapshot_of(Config(resume=resume), folder)


async def test_the_same_command_with_a_path_keeps_what_was_done_since(tmp_path: Path) -> None:
    await train(fake_run(tmp_path, max_steps=6, checkpoint_every=2))
    folder = RunFolder.create(tmp_path)
    asked = Config(resume=str(tmp_path / "checkpoints" / "step_000004"))
    snapshot = snapshot_of(asked, folder)
    assert snapshot is not None
    assert snapshot.step == 4
    again = fake_run(tmp_path, max_steps=8, checkpoint_every=2)
    again.snapshot = snapshot
    await train(again)
    continued = snapshot_of(asked, folder)
    assert continued is not None
    assert continued.step == 8


async def test_the_model_counts_only_when_it_is_whole_and_of_the_last_step(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    run = fake_run(tmp_path, max_steps=4)
    await train(run)

    async def die(path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "config.json").write_text("{}")
        raise LearnerLost("rank 0 died")

    run.learners.export = die
    with pytest.raises(LearnerLost):
        await finish(run, folder)
    assert model_of_step(folder, 4) is None
    assert not folder.model.exists()
    assert (tmp_path / "checkpoints" / "step_000004" / "manifest.json").is_file(), "saved before anything could fail"

    async def export(path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "config.json").write_text(json.dumps({"use_cache": True}))

    run.learners.export = export
    await finish(run, folder)
    assert model_of_step(folder, 4) == folder.model
    assert model_of_step(folder, 8) is None
    assert audit(tmp_path / "ledger.jsonl").open == []


async def test_an_earlier_return_that_nobody_asked_for_does_not_count_as_one(tmp_path: Path) -> None:
    await train(fake_run(tmp_path, max_steps=4, checkpoint_every=2))
    await train(fake_run(tmp_path, max_steps=8, checkpoint_every=4))  # by itself, from step 4
    asked = Config(resume=str(tmp_path / "checkpoints" / "step_000004"))
    snapshot = snapshot_of(asked, RunFolder.create(tmp_path))
    assert snapshot is not None
    assert snapshot.step == 4


def store_of(folder: Path) -> Store:
    return faulty_store(folder / "store", lambda operation, path: None)


def with_store(config: Config, folder: RunFolder, store: Store) -> Snapshot | None:
    return find_snapshot(config, folder, Checkpoints(folder.checkpoints, config.checkpoint, store))


async def trained(folder: Path, store: Store, **config: Any) -> Run:
    run = fake_run(folder, store=store, **config)
    await train(run)
    await run.checkpoints.settle()
    return run


async def test_a_new_run_folder_goes_on_where_the_stores_checkpoint_ended_with_its_ledger(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    calm = fake_run(tmp_path / "calm", max_steps=8, max_staleness=2)
    await train(calm)
    await trained(tmp_path / "first", store, max_steps=6, max_staleness=2, checkpoint_every=4)
    folder = RunFolder.create(tmp_path / "second")
    snapshot = with_store(Config(), folder, store)
    assert snapshot is not None
    assert snapshot.step == 4
    second = await trained(tmp_path / "second", store, max_steps=8, max_staleness=2, checkpoint_every=4)
    account = audit(folder.ledger)
    assert account.problems == []
    assert second.learners.trained == calm.learners.trained
    groups = [event["group"] for event in read_events(folder.ledger) if event["event"] == "issued"]
    assert len(groups) == len(set(groups)), "ids go on"
    assert store.steps() == [4, 8]


async def test_a_lost_ledger_is_begun_again_from_the_run_folders_own_checkpoint(tmp_path: Path) -> None:
    await train(fake_run(tmp_path, max_steps=4, checkpoint_every=2))
    folder = RunFolder.create(tmp_path)
    whole = folder.ledger.read_bytes()
    folder.ledger.unlink()
    assert snapshot_of(Config(), folder) is not None
    assert whole.startswith(folder.ledger.read_bytes())
    assert audit(folder.ledger).problems == []


async def test_a_store_with_another_runs_checkpoints_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    await trained(tmp_path / "one", store, max_steps=2, checkpoint_every=2)
    await train(fake_run(tmp_path / "two", max_steps=4, checkpoint_every=2))
    with pytest.raises(
        ValueError, match=r"/store holds checkpoints of another run than .*/two; give this run another name"
    ):
        with_store(Config(), RunFolder.create(tmp_path / "two"), store)
    with pytest.raises(ValueError, match=r"resume=never, but .*/store holds a run's checkpoints"):
        with_store(Config(resume="never"), RunFolder.create(tmp_path / "three"), store)


async def test_a_run_folder_that_went_another_way_than_the_store_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    await trained(tmp_path / "here", store, max_steps=4, checkpoint_every=2)
    folder = RunFolder.create(tmp_path / "there")
    assert with_store(Config(), folder, store) is not None
    await trained(folder.path, store, max_steps=8, checkpoint_every=2)
    # Back on the first machine, whose folder has steps that no one continued.
    here = RunFolder.create(tmp_path / "here")
    with here.ledger.open("a") as ledger:
        ledger.write('{"event":"attempt","attempt":9}\n')
    with pytest.raises(ValueError, match=r"step_000008 was taken in another history .* new run_dir"):
        with_store(Config(), here, store)


async def test_a_checkpoint_in_the_store_can_be_asked_for_by_either_address(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    await trained(tmp_path / "run", store, max_steps=6, checkpoint_every=2)
    folder = RunFolder.create(tmp_path / "run")
    for place in (tmp_path / "store", folder.checkpoints):
        snapshot = with_store(Config(resume=f"{place}/step_000004"), folder, store)
        assert snapshot is not None
        assert (snapshot.step, snapshot.asked_for) == (4, True)
    with pytest.raises(ValueError, match=r"not in .*/checkpoints or .*/store; a run continues its own"):
        with_store(Config(resume="s3://bucket/step_000004"), folder, store)
    run = fake_run(tmp_path / "run", max_steps=6, store=store)
    run.snapshot = snapshot
    run.learners.before_step = lambda step, groups: run.stop.set()
    await train(run)
    await run.checkpoints.settle()
    assert store.steps() == [4, 5], "what came after is void"


async def test_a_run_whose_last_checkpoint_cannot_be_stored_says_so_after_the_model_is_written(tmp_path: Path) -> None:
    def fail(operation: str, path: str) -> None:
        raise OSError("access denied")

    run = fake_run(tmp_path, max_steps=2, store=faulty_store(tmp_path / "store", fail), checkpoint_deadline_s=0.5)
    await train(run)

    async def export(path: str) -> None:
        Path(path).mkdir()

    run.learners.export = export
    folder = RunFolder.create(tmp_path)
    with pytest.raises(RunStopped, match=r"step_000002 is not in .*/store: access denied.*The model is in .*/model"):
        await finish(run, folder)
    assert model_of_step(folder, 2) == folder.model

    checkpoints = Checkpoints(folder.checkpoints, CheckpointConfig(), store_of(tmp_path))
    assert await asyncio.to_thread(_already_done, Config(max_steps=2), folder, checkpoints) == 0
    assert store_of(tmp_path).steps() == [2], "the same command once more brings it"
