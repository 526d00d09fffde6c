"""Checkpoints are complete or none, and say which file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from funicular.launch.accounts import Position
from funicular.launch.checkpoints import CheckpointError, Checkpoints, read_snapshot

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


async def save(checkpoints: Checkpoints, step: int, text: str = "weights") -> Path:
    return await checkpoints.save(step, POSITION, {"eval/held_out/pass@1": 0.5}, FakeLearner(text).save)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep_last=2)


async def test_what_was_saved_is_read_back(checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert checkpoints.newest() is None
    path = await save(checkpoints, 10)
    snapshot = checkpoints.newest()
    assert snapshot == read_snapshot(path)
    assert snapshot is not None
    assert (snapshot.path, snapshot.step) == (tmp_path / "step_000010", 10)
    assert snapshot.position == POSITION
    assert snapshot.first_evaluation == {"eval/held_out/pass@1": 0.5}
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "weights"
    assert names(tmp_path) == ["step_000010"]


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


async def test_a_folder_without_manifest_is_ignored(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = await save(checkpoints, 1)
    (await save(checkpoints, 2) / "manifest.json").unlink()
    (tmp_path / "step_000003.tmp").mkdir()
    (tmp_path / "step_000003.tmp" / "manifest.json").write_text("{}")
    assert checkpoints.newest() == read_snapshot(path)
    with pytest.raises(CheckpointError, match=r"step_000002: no manifest\.json"):
        read_snapshot(tmp_path / "step_000002")


async def test_only_the_last_ones_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        await save(checkpoints, step)
    assert names(tmp_path) == ["step_000010", "step_000011"]


async def test_the_same_step_is_replaced_whole(checkpoints: Checkpoints, tmp_path: Path) -> None:
    old = await save(checkpoints, 5, "rolled back")
    (old / "learner" / "rank" / "1.pt").write_text("of a rank that is no more")
    assert await save(checkpoints, 5, "trained again") == old
    snapshot = checkpoints.newest()
    assert snapshot is not None
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "trained again"
    assert names(Path(snapshot.learner) / "rank") == ["0.pt"]
    assert names(tmp_path) == ["step_000005"]


async def test_a_save_that_fails_leaves_the_same_step_as_it_was(checkpoints: Checkpoints) -> None:
    path = await save(checkpoints, 5)
    with pytest.raises(RuntimeError, match="rank 0 is gone"):
        await checkpoints.save(5, POSITION, None, FakeDyingLearner().save)
    assert checkpoints.newest() == read_snapshot(path)


async def test_what_crashes_left_is_swept_by_the_next_save(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in ("step_000003.tmp", "step_000004.old.tmp", "step_000006.tmp"):
        (tmp_path / name / "learner").mkdir(parents=True)
        (tmp_path / name / "learner" / "half.pt").write_text("half")
    path = await save(checkpoints, 6)
    assert names(tmp_path) == ["step_000006"]
    assert names(path / "learner") == ["latest", "rank"]


async def test_later_steps_are_forgotten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    for step in (1, 2, 3):
        await save(checkpoints, step)
    checkpoints.forget_after(2)
    assert names(tmp_path) == ["step_000001", "step_000002"]
    checkpoints.forget_after(0)
    assert checkpoints.newest() is None
