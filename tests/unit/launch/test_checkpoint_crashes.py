"""kill -9 at every change that saving makes to the disk or to the store: never half a checkpoint, never none."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import CheckpointConfig, Config
from funicular.launch.ledger import audit
from funicular.launch.loop import train
from funicular.launch.resume_point import find_snapshot
from funicular.launch.run_folder import RunFolder
from tests.crashes import outcomes
from tests.fake_store import faulty_store
from tests.fakes import fake_run


def found(folder: Path, *, store: bool = False) -> tuple[int, str]:
    """Step and content of what a run would resume from; reading verifies it."""
    place = faulty_store(folder / "store", lambda operation, path: None) if store else None
    snapshot = Checkpoints(folder / "checkpoints", CheckpointConfig(), place).newest_anywhere()
    assert snapshot is not None
    texts = {(Path(snapshot.learner) / name).read_text() for name in ("a", "b")}
    assert len(texts) == 1
    return snapshot.step, texts.pop()


def check_killed(statuses: list[int], at_least: int) -> int:
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert statuses[-1] == 0
    assert len(statuses) > at_least
    return len(statuses) - 1


@pytest.mark.parametrize(
    ("scenario", "before", "after"), [("local", (1, "first"), (2, "second")), ("again", (1, "first"), (1, "second"))]
)
def test_a_save_killed_at_any_change_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, scenario: str, before: tuple[int, str], after: tuple[int, str]
) -> None:
    kills = check_killed(outcomes(scenario, tmp_path), at_least=12)
    left = [found(tmp_path / str(number)) for number in range(kills + 1)]
    assert left[0] == before
    assert left[-1] == after
    assert left == sorted(left), "once complete, it stays"
    assert set(left) == {before, after}


def test_an_upload_killed_at_any_change_leaves_the_old_checkpoint_or_the_new_one_in_the_store(tmp_path: Path) -> None:
    kills = check_killed(outcomes("store", tmp_path), at_least=8)
    for number in range(kills + 1):
        assert found(tmp_path / str(number), store=True) == (2, "second"), (
            "the run folder has it whatever the store has"
        )
        shutil.rmtree(tmp_path / str(number) / "checkpoints")
        (tmp_path / str(number) / "checkpoints").mkdir()
    left = [found(tmp_path / str(number), store=True) for number in range(kills + 1)]
    assert left[0] == (1, "first")
    assert left[-1] == (2, "second")
    assert left == sorted(left)


def test_a_kill_while_void_checkpoints_are_deleted_leaves_each_whole_or_none(tmp_path: Path) -> None:
    """Steps 1 to 3 are there, 2 and 3 are void: newest first, so that what is left is never damaged."""
    kills = check_killed(outcomes("forget", tmp_path), at_least=12)
    for number in range(kills + 1):
        folder = tmp_path / str(number)
        here = Checkpoints(folder / "here" / "checkpoints", CheckpointConfig()).newest()
        assert here is not None
        store = faulty_store(folder / "store", lambda operation, path: None)
        (folder / "there" / "checkpoints").mkdir(exist_ok=True)
        there = Checkpoints(folder / "there" / "checkpoints", CheckpointConfig(), store).newest_anywhere()
        assert there is not None
        assert (Path(there.learner) / "a").read_text() == str(there.step)
    assert here.step == there.step == 1


@pytest.mark.parametrize("folder_survives", [True, False])
async def test_a_run_killed_while_it_uploads_resumes_from_the_newest_complete_checkpoint(
    tmp_path: Path, folder_survives: bool
) -> None:
    calm = fake_run(tmp_path / "calm", max_steps=8)
    await train(calm)
    # Killed before the third file of step 4; by then the run folder has it, and the store has step 2 alone.
    kills = check_killed(outcomes("run", tmp_path), at_least=3)
    folder = RunFolder.create(tmp_path / str(min(2, kills - 1)))
    if not folder_survives:
        for path in folder.path.iterdir():
            if path.name != "store":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        RunFolder.create(folder.path)
    store = faulty_store(folder.path / "store", lambda operation, path: None)
    checkpoints = Checkpoints(folder.checkpoints, CheckpointConfig(), store)
    snapshot = find_snapshot(Config(), folder, checkpoints)
    assert snapshot is not None
    assert snapshot.step == (4 if folder_survives else 2)
    resumed = fake_run(folder.path, max_steps=8, checkpoint_every=2, store=store)
    assert resumed.snapshot is not None
    assert resumed.snapshot.step == snapshot.step
    await train(resumed)
    await resumed.checkpoints.settle()
    assert resumed.learners.trained == calm.learners.trained
    account = audit(folder.ledger)
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, 9))
    assert store.steps() == [6, 8]
    assert resumed.weights.published == sorted(set(resumed.weights.published))
