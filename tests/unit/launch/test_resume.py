"""Going back to a checkpoint on purpose, and ending a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from funicular.actors.errors import LearnerLost, RunStopped
from funicular.launch.checkpoints import read_snapshot
from funicular.launch.config import Config
from funicular.launch.finish import finish, model_of_step
from funicular.launch.ledger import audit
from funicular.launch.loop import train
from funicular.launch.run_folder import RunFolder
from funicular.launch.train import _snapshot
from tests.fakes import fake_run


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
        _snapshot(Config(resume=resume), folder)


async def test_the_same_command_with_a_path_keeps_what_was_done_since(tmp_path: Path) -> None:
    await train(fake_run(tmp_path, max_steps=6, checkpoint_every=2))
    folder = RunFolder.create(tmp_path)
    asked = Config(resume=str(tmp_path / "checkpoints" / "step_000004"))
    snapshot = _snapshot(asked, folder)
    assert snapshot is not None
    assert snapshot.step == 4
    again = fake_run(tmp_path, max_steps=8, checkpoint_every=2)
    again.snapshot = snapshot
    await train(again)
    continued = _snapshot(asked, folder)
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
    snapshot = _snapshot(asked, RunFolder.create(tmp_path))
    assert snapshot is not None
    assert snapshot.step == 4
