"""`funicular sandbox probe`: what it prints and how it ends."""

from __future__ import annotations

import re

import pytest

from funicular.launch import sandbox_probe
from funicular.launch.cli import main
from funicular.rewards.sandbox.probe import Reach, reach
from funicular.rewards.sandbox.sandbox import Sandbox
from tests.slots import skip_unless_possible


def test_where_nothing_is_reached_it_says_why_and_which_switch_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing() -> Reach:
        reasons = {"L3": "no user namespaces. Change: kernel.unprivileged_userns_clone=1", "L1": "no Landlock"}
        return Reach(level=None, reasons=reasons, details={"kernel": "4.19"})

    def not_started() -> Sandbox:
        raise AssertionError("a sandbox was started")

    monkeypatch.setattr(sandbox_probe, "reach", nothing)
    monkeypatch.setattr(sandbox_probe, "Sandbox", not_started)
    assert main(["sandbox", "probe"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("level none")
    assert "not L3: no user namespaces. Change: kernel.unprivileged_userns_clone=1" in printed
    assert "not L1: no Landlock" in printed
    assert re.search(r"kernel +4\.19", printed)
    assert re.search(r"cores +\d+", printed)


def test_where_a_level_is_reached_it_is_tried_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    skip_unless_possible()
    level = reach().level
    assert main(["sandbox", "probe"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"level {level}\n")
    assert f"self-test passed at {level}" in printed
    assert "  python: ok\n" in printed
    assert "  python, asserts in a slot of their own: ok\n" in printed
    speed = re.search(r"speed (\d+) jobs/s", printed)
    assert speed
    assert int(speed[1]) > 0
