"""`funicular sandbox probe`: what it prints and how it ends."""

from __future__ import annotations

import re

import pytest

from funicular.launch import sandbox_probe
from funicular.launch.cli import main
from funicular.rewards.sandbox.probe import Reach
from funicular.rewards.sandbox.sandbox import Sandbox


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
