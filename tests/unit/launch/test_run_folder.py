"""The run folder's layout, its lock, and the code's version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from funicular.launch.run_folder import RunFolder, RunFolderLockedError, code_version

HOLD_LOCK = """
import os, sys
from funicular.launch.run_folder import RunFolder
lock = RunFolder.create(sys.argv[1]).lock()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_created_folder_has_no_model_until_one_is_exported(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "a")
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()
    assert not folder.model.exists()


def test_creating_twice_keeps_what_is_there(tmp_path: Path) -> None:
    RunFolder.create(tmp_path).config.write_text("seed: 1\n")
    assert RunFolder.create(tmp_path).config.read_text() == "seed: 1\n"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"run_dir: .*/run cannot be made"):
        RunFolder.create(tmp_path / "run")


def test_a_relative_path_does_not_move_with_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create("run")
    assert folder.path == tmp_path / "run"


def test_the_second_driver_is_told_the_pid_of_the_first_and_gets_the_folder_after_its_death(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        with pytest.raises(RunFolderLockedError, match=rf"pid {pid} on .*name=\.\.\."):
            RunFolder.create(tmp_path).lock()
        holder.kill()
        holder.wait(timeout=30)
    RunFolder.create(tmp_path).lock().release()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    with folder.lock():
        pass
    lock = folder.lock()
    lock.release()
    lock.release()


def test_code_version_names_the_folder_that_the_code_was_loaded_from() -> None:
    import funicular.launch.run_folder as module

    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(code_version().root)
    assert code_version().version


def test_a_folder_that_is_not_the_root_of_a_checkout_has_no_commit(tmp_path: Path) -> None:
    from funicular.launch.run_folder import _git_sha

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "a").write_text("a")
    subprocess.run(["git", "-C", str(tmp_path), "add", "a"], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "a"], check=True)
    (tmp_path / "site-packages").mkdir()
    assert _git_sha(tmp_path / "site-packages") is None
    sha = _git_sha(tmp_path)
    assert sha is not None
    assert len(sha) == 40
    (tmp_path / "a").write_text("b")
    assert _git_sha(tmp_path) == f"{sha}-dirty"
