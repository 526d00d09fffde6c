"""Which folders of the system programs may read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from funicular.rewards.sandbox.slot.visible import interpreter_folders


def test_of_a_prefix_programs_see_what_debians_node_starts_from_and_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bin", "share/nodejs", "share/zoneinfo", "share/data", "src"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    shown = [Path(path) for path in interpreter_folders()]
    assert {str(path.relative_to(tmp_path)) for path in shown if path.is_relative_to(tmp_path)} == {
        "bin",
        "share/nodejs",
        "share/zoneinfo",
    }
