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


def test_only_files_of_dead_processes_are_removed(shm: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = f"funicular-{int(child.stdout)}-0"
    for name in (dead, f"funicular-{os.getpid()}-0", "funicular-notes", "other"):
        (shm / name).touch()
    assert shm_files.remove_leftovers() == [dead]
    assert {path.name for path in shm.iterdir()} == {f"funicular-{os.getpid()}-0", "funicular-notes", "other"}
