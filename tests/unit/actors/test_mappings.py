"""What lasts is mapped once, and what does not is forgotten."""

import os
from pathlib import Path

import pytest

from funicular.actors.mappings import Mappings
from funicular.actors.memory_file import MemoryFile


def test_a_file_that_lasts_is_mapped_once_and_shows_what_is_written_later() -> None:
    mappings, file = Mappings(), MemoryFile(8192)
    mapped = mappings.map(file.path, lasts=True)
    file.data[5000] = 7
    assert mapped[5000] == 7
    assert mappings.map(file.path, lasts=True) is mapped


def test_one_that_does_not_last_is_not_kept_but_stays_readable_after_it_is_closed() -> None:
    mappings, file = Mappings(), MemoryFile(8192)
    mapped = mappings.map(file.path, lasts=False)
    assert mappings.map(file.path, lasts=False) is not mapped
    file.data[0] = 9
    file.close()
    assert mapped[0] == 9


def test_a_closed_file_has_no_descriptor_left() -> None:
    def descriptors() -> int:
        return sum("memfd:funicular" in os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())

    before, file = descriptors(), MemoryFile(8192)
    assert descriptors() > before
    file.close()
    assert descriptors() == before


def test_another_file_under_the_same_path_is_another_mapping() -> None:
    mappings, first = Mappings(), MemoryFile(4096)
    path = first.path
    mapped = mappings.map(path, lasts=True)
    first.close()
    second = MemoryFile(4096)
    assert second.path == path, "the descriptor's number was given again"
    second.data[0] = 3
    assert mappings.map(path, lasts=True)[0] == 3
    assert mapped[0] == 0


def test_a_file_that_grew_is_mapped_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    mappings = Mappings()
    assert len(mappings.map(str(path), lasts=True)) == 10
    path.write_bytes(b"x" * 20)
    assert len(mappings.map(str(path), lasts=True)) == 20


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Mappings().map(str(tmp_path / "none"), lasts=True)
