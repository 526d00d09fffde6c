"""Bucket files are whole, distinct, and do not outlive a killed process for long."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from funicular.actors import shm_files


@pytest.fixture(autouse=True)
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shm_files, "SHM", tmp_path)
    return tmp_path


async def test_a_bucket_is_written_whole_and_every_one_to_a_file_of_its_own() -> None:
    data = np.arange(256, dtype=np.uint8)
    first, second = await shm_files.write_bucket(data), await shm_files.write_bucket(data)
    assert first != second
    assert first.read_bytes() == data.tobytes()


async def test_a_bucket_that_cannot_be_written_says_how_much_was_needed(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_files, "SHM", shm / "missing")
    with pytest.raises(OSError, match="256 bytes do not fit into"):
        await shm_files.write_bucket(np.zeros(256, dtype=np.uint8))


@pytest.fixture(scope="module")
def dead() -> int:
    """A process id that was in use and is no more."""
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(child.stdout)


@pytest.fixture
def namespace() -> str:
    return os.readlink("/proc/self/ns/pid").removeprefix("pid:[").removesuffix("]")


async def test_a_file_says_which_process_in_which_pid_namespace_wrote_it(namespace: str) -> None:
    path = await shm_files.write_bucket(np.zeros(1, dtype=np.uint8))
    assert path.name.startswith(f"funicular-{os.getpid()}-{namespace}-")


def test_only_files_of_dead_processes_are_removed(shm: Path, dead: int, namespace: str) -> None:
    left = f"funicular-{dead}-{namespace}-0"
    kept = {
        f"funicular-{os.getpid()}-{namespace}-0",
        f"funicular-{dead}-1-0",  # its process may live in its own namespace
        "funicular-notes",
        "other",
    }
    for name in (left, *kept):
        (shm / name).touch()
    assert shm_files.remove_leftovers() == [left]
    assert {path.name for path in shm.iterdir()} == kept


def test_files_of_other_users_are_left_alone(
    shm: Path, dead: int, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shm / f"funicular-{dead}-{namespace}-0").touch()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert shm_files.remove_leftovers() == []
    assert len(list(shm.iterdir())) == 1


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_file_that_vanished_or_may_not_be_removed_is_passed_over(
    shm: Path, dead: int, namespace: str, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(path: Path) -> None:
        raise error(path)

    (shm / f"funicular-{dead}-{namespace}-0").touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    assert shm_files.remove_leftovers() == []
