"""Checkpoints are complete or none, and say which file is damaged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from funicular.actors.errors import RunStopped
from funicular.launch.accounts import Position
from funicular.launch.checkpoint_files import CheckpointError, write_manifest
from funicular.launch.checkpoints import Checkpoints, read_snapshot
from funicular.launch.config import CheckpointConfig

POSITION = Position(released=8, drawn=11, open={8: ("t9", "g000010"), 9: ("t3", "g000011")})


class FakeLearner:
    """Saves its text as two files, one in a folder below."""

    def __init__(self, text: str = "weights") -> None:
        self.text = text

    async def save(self, folder: str) -> None:
        (Path(folder) / "rank").mkdir()
        (Path(folder) / "rank" / "0.pt").write_text(self.text)
        (Path(folder) / "latest").write_text("rank")


class FakeDyingLearner:
    """Dies halfway through saving."""

    async def save(self, folder: str) -> None:
        (Path(folder) / "half.pt").write_text("half")
        raise RuntimeError("rank 0 is gone")


async def save(
    checkpoints: Checkpoints, step: int, text: str = "weights", evaluation: Mapping[str, float] | None = None
) -> Path:
    """Save, and wait for the background."""
    first = {"eval/held_out/pass_at_1": 0.5}
    ledger = checkpoints._folder.parent / "ledger.jsonl"
    if not ledger.exists():
        ledger.write_text('{"event":"attempt","attempt":1}\n')
    path = await checkpoints.save(step, POSITION, first, FakeLearner(text).save, ledger=ledger, evaluation=evaluation)
    await checkpoints.settle()
    return path


def make(folder: Path, **config: Any) -> Checkpoints:
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Checkpoints(folder / "checkpoints", CheckpointConfig(**config))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return make(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


async def test_what_was_saved_is_read_back(checkpoints: Checkpoints, folder: Path) -> None:
    assert checkpoints.newest() is None
    path = await save(checkpoints, 10)
    snapshot = checkpoints.newest()
    assert snapshot == read_snapshot(path)
    assert snapshot is not None
    assert (snapshot.path, snapshot.step) == (folder / "step_000010", 10)
    assert snapshot.position == POSITION
    assert snapshot.first_evaluation == {"eval/held_out/pass_at_1": 0.5}
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "weights"
    assert names(folder) == ["step_000010"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("weightz", "its sha256 is not the manifest's"), ("weight", "not the 7 bytes"), (None, "missing")],
)
async def test_a_damaged_file_is_named(checkpoints: Checkpoints, content: str | None, message: str) -> None:
    file = await save(checkpoints, 1) / "learner" / "rank" / "0.pt"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(CheckpointError, match=rf"step_000001/learner/rank/0\.pt: .*{message}"):
        checkpoints.newest()


async def test_a_manifest_of_another_format_is_refused(checkpoints: Checkpoints) -> None:
    manifest = await save(checkpoints, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(CheckpointError, match=r"format 1, this version reads 2; .*model\.path"):
        checkpoints.newest()


async def test_a_folder_without_manifest_is_ignored(checkpoints: Checkpoints, folder: Path) -> None:
    path = await save(checkpoints, 1)
    (await save(checkpoints, 2) / "manifest.json").unlink()
    (folder / "step_000003.tmp").mkdir()
    (folder / "step_000003.tmp" / "manifest.json").write_text("{}")
    assert checkpoints.newest() == read_snapshot(path)
    with pytest.raises(CheckpointError, match=r"step_000002: no manifest\.json"):
        read_snapshot(folder / "step_000002")


async def test_only_the_last_ones_are_kept(checkpoints: Checkpoints, folder: Path) -> None:
    for step in (8, 9, 10, 11):
        await save(checkpoints, step)
    assert names(folder) == ["step_000010", "step_000011"]


async def test_the_same_step_is_replaced_whole(checkpoints: Checkpoints, folder: Path) -> None:
    old = await save(checkpoints, 5, "rolled back")
    (old / "learner" / "rank" / "1.pt").write_text("of a rank that is no more")
    assert await save(checkpoints, 5, "trained again") == old
    snapshot = checkpoints.newest()
    assert snapshot is not None
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "trained again"
    assert names(Path(snapshot.learner) / "rank") == ["0.pt"]
    assert names(folder) == ["step_000005"]


async def test_a_save_that_fails_leaves_the_same_step_as_it_was(checkpoints: Checkpoints) -> None:
    path = await save(checkpoints, 5)
    with pytest.raises(RuntimeError, match="rank 0 is gone"):
        await checkpoints.save(5, POSITION, None, FakeDyingLearner().save, ledger=path.parents[1] / "ledger.jsonl")
    assert checkpoints.newest() == read_snapshot(path)


async def test_what_crashes_left_is_swept_by_the_next_save(checkpoints: Checkpoints, folder: Path) -> None:
    for name in ("step_000003.tmp", "step_000004.old.tmp", "step_000006.tmp"):
        (folder / name / "learner").mkdir(parents=True)
        (folder / name / "learner" / "half.pt").write_text("half")
    path = await save(checkpoints, 6)
    assert names(folder) == ["step_000006"]
    assert names(path / "learner") == ["latest", "rank"]


async def test_later_steps_are_forgotten(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep_last=9)
    for step in (1, 2, 3):
        await save(checkpoints, step)
    await checkpoints.forget_after(2)
    assert names(tmp_path / "checkpoints") == ["step_000001", "step_000002"]
    await checkpoints.forget_after(0)
    assert checkpoints.newest() is None


async def test_the_best_stay_besides_the_newest(tmp_path: Path, folder: Path) -> None:
    checkpoints = make(tmp_path, keep_last=1, keep_best=2)
    for step, value in enumerate([0.5, 0.9, None, 0.7, 0.1, None], 1):
        await save(checkpoints, step, evaluation=None if value is None else {"eval/held_out/pass_at_1": value})
    assert names(folder) == ["step_000002", "step_000004", "step_000006"]


async def test_another_metric_can_be_what_is_best(tmp_path: Path, folder: Path) -> None:
    checkpoints = make(tmp_path, keep_last=1, keep_best=1, best_metric="eval/held_out/reward_mean")
    for step, (passed, reward) in enumerate([(0.9, 0.1), (0.1, 0.9), (0.5, 0.5)], 1):
        await save(
            checkpoints,
            step,
            evaluation={"eval/held_out/pass_at_1": passed, "eval/held_out/reward_mean": reward},
        )
    assert names(folder) == ["step_000002", "step_000003"]


async def test_the_background_may_take_its_time_and_training_goes_on(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def slow(folder: Path, step: int) -> None:
        assert go.wait(60)
        write_manifest(folder, step)

    monkeypatch.setattr("funicular.launch.checkpoints.write_manifest", slow)
    saving = asyncio.create_task(save(checkpoints, 5))
    await asyncio.sleep(0.1)
    assert checkpoints.newest() is None, "without its manifest it does not exist"
    assert checkpoints.news() == ([], {})
    go.set()
    await saving
    assert checkpoints.newest() is not None
    sentences, metrics = checkpoints.news()
    assert sentences == ["checkpoint step_000005"]
    assert metrics.keys() == {"time/checkpoint_background_s"}


async def test_a_background_that_fails_stops_the_run_and_keeps_the_checkpoint_before(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await save(checkpoints, 5)

    def full(folder: Path, step: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("funicular.launch.checkpoints.write_manifest", full)
    says = r"checkpoint step_000010 could not be completed: OSError: .*No space left.*Look at .*/checkpoints; when"
    with pytest.raises(RunStopped, match=says):
        await save(checkpoints, 10)
    for notice in (checkpoints.sealed, checkpoints.settle):
        with pytest.raises(RunStopped, match=says):
            await notice()
    with pytest.raises(RunStopped, match=says):
        checkpoints.news()
    assert checkpoints.newest() == read_snapshot(path)


async def test_the_ledger_of_a_checkpoint_ends_where_it_was_taken(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"event":"attempt"}\n{"event":"one"}\n')

    class FakeSlowLearner(FakeLearner):
        """Meanwhile the run goes on."""

        async def save(self, folder: str) -> None:
            with ledger.open("a") as file:
                file.write('{"event":"two"}\n')
            await super().save(folder)

    path = await checkpoints.save(5, POSITION, None, FakeSlowLearner().save, ledger=ledger)
    await checkpoints.settle()
    assert (path / "ledger.jsonl").read_text() == '{"event":"attempt"}\n{"event":"one"}\n'
