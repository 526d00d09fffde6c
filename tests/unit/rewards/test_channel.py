"""A child that cannot be reaped in time is reported like any other that had to be killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from funicular.rewards import channel
from funicular.rewards.channel import Child, ChildDiedError, ChildTimeoutError


class FakeStuckProcess:
    """A process that the kernel does not let end: waiting for it never succeeds."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.returncode = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def poll(self) -> None:
        return None

    def wait(self, timeout: float) -> None:
        raise subprocess.TimeoutExpired("child", timeout)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_REAP_DEADLINE_S", 0.2)


@pytest.fixture
def stuck() -> Iterator[Child]:
    child = Child(["sleep", "60"], {})
    process = child._process
    child._process = FakeStuckProcess(process)  # type: ignore[assignment]
    yield child
    child.kill()
    process.wait(10)


def test_a_child_that_closes_its_output_and_lives_on_is_killed() -> None:
    child = Child(["sh", "-c", "exec 1>&-; sleep 60"], {"PATH": "/usr/bin:/bin"})
    with pytest.raises(ChildDiedError, match="exit code -9"):
        child.exchange(b"x", 30)
    assert not child.alive


def test_a_child_that_does_not_end_when_killed_has_timed_out_all_the_same(stuck: Child) -> None:
    with pytest.raises(ChildTimeoutError, match=r"no answer in 0\.05 s"):
        stuck.exchange(b"x", 0.05)
    assert not stuck.alive


def test_killing_a_child_that_does_not_end_says_so_and_goes_on(stuck: Child, caplog: pytest.LogCaptureFixture) -> None:
    stuck.kill()
    assert f"reward process {stuck.pid} has not ended" in caplog.text
    assert not stuck.alive
