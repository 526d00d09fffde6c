"""Emptying folders that hostile code filled."""

import os
from pathlib import Path

import pytest

from funicular.rewards.sandbox.slot import cleaning

_NAME = "folder"


def _deep(folder: Path, levels: int) -> None:
    """A chain of folders, each without any permission but the last."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(_NAME, dir_fd=here)
        inside = os.open(_NAME, os.O_RDONLY, dir_fd=here)
        os.chmod(_NAME, 0, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)


def test_a_tree_deeper_than_paths_and_recursion_go_is_removed(tmp_path: Path) -> None:
    _deep(tmp_path, 1100)

    cleaning.empty(str(tmp_path), seconds=60)

    assert os.listdir(tmp_path) == []


def test_what_lies_behind_links_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "kept")
    os.link(outside / "kept", inside / "hard")
    os.mkfifo(inside / "fifo")

    cleaning.empty(str(inside), seconds=10)

    assert os.listdir(inside) == []
    assert (outside / "kept").read_text() == "x"


def test_too_much_for_the_time_given_is_said(tmp_path: Path) -> None:
    _deep(tmp_path, 50)

    with pytest.raises(cleaning.TooMuch):
        cleaning.empty(str(tmp_path), seconds=-1)


def test_sizes_of_files_are_added_up_and_links_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2 << 20))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(os.urandom(1 << 20))
    (tmp_path / "b" / "link").symlink_to("/")

    assert 3.0 <= cleaning.mib_used(str(tmp_path), 100) < 3.5
    assert cleaning.mib_used(str(tmp_path), 2) == float("inf")
