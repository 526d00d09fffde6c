"""The self-test: real slots pass it, and it names what gets through where a wall is missing."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from funicular.rewards.sandbox import canaries
from funicular.rewards.sandbox.canaries import Canary, bash_canaries, python_canaries
from funicular.rewards.sandbox.self_test import check_slot
from funicular.rewards.sandbox.slot.syscalls import this_machine
from funicular.rewards.sandbox.slot.wire import Job
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotProcess, SlotRole, missing_tool
from funicular.rewards.sandbox.types import JobReport, Level, Outcome
from tests.slots import LEVELS, skip_unless_possible, slot_of


@pytest.fixture(params=LEVELS)
def slot(request: pytest.FixtureRequest) -> Iterator[SlotProcess]:
    yield from slot_of(SlotRole.CANDIDATE, request.param, number=7)


def test_a_slot_that_runs_python_passes(slot: SlotProcess) -> None:
    check_slot(slot)

    assert slot.jobs > 20


def test_a_native_slot_passes() -> None:
    if missing := missing_tool("bash"):
        pytest.skip(missing)
    for slot in slot_of(SlotRole.NATIVE, Level.L3, number=8):
        check_slot(slot)

        assert slot.jobs > 15


class FakeSlot:
    """Says of each attack that it ended as it should, but for one, which it runs in a process without walls.

    The canaries do no harm there; see the module that holds them.
    """

    role, level, name, canary = SlotRole.CANDIDATE, Level.L1, "fake", "bait"

    def __init__(self, *, open_to: str = "", answers: dict[str, JobReport] | None = None) -> None:
        """Args: open_to: name of the canary that meets no wall; answers: reports of other canaries, by name."""
        self.details = {"user": "its own"}
        self.stdout_of_bait = self.canary.encode()
        self._canaries = iter(python_canaries(this_machine().name))
        self._open_to = open_to
        self._answers = answers or {}

    def run(self, job: Job) -> JobReport:
        """In the order of the self-test: every canary, then the bait."""
        canary = next(self._canaries, None)
        if canary is None:
            return _report(Outcome.OK, self.stdout_of_bait)
        if canary.name in self._answers:
            return self._answers[canary.name]
        if canary.name != self._open_to:
            return _report(next(iter(canary.outcomes)), b"tried\n")
        done = subprocess.run(
            [sys.executable, "-c", job.source], capture_output=True, timeout=60, cwd="/", stdin=subprocess.DEVNULL
        )
        return _report(Outcome.OK if done.returncode == 0 else Outcome.RUNTIME_ERROR, done.stdout)


def _check(slot: FakeSlot) -> None:
    check_slot(slot)  # type: ignore[arg-type]


def _report(outcome: Outcome, stdout: bytes) -> JobReport:
    return JobReport(
        outcome=outcome, exit_code=0, cpu_s=0.0, wall_s=0.0, peak_rss_mib=0.0, stdout=stdout, stderr=b"", denied={}
    )


@pytest.mark.parametrize(
    "missing",
    [
        "environment",
        "reading other files",
        "writing other files",
        "attributes of other files",
        "other processes' memory",
        "signals to others",
        "network",
        "new processes",
        "what the kernel offers to few",
    ],
)
def test_a_missing_wall_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_OWNER", "x")

    with pytest.raises(SlotFailed, match=f"{missing}: through:"):
        _check(FakeSlot(open_to=missing))


def test_a_slot_with_all_walls_passes_the_same_way() -> None:
    _check(FakeSlot())


def test_a_limit_that_does_not_hold_is_named() -> None:
    with pytest.raises(SlotFailed, match="memory: ended with ok"):
        _check(FakeSlot(answers={"memory": _report(Outcome.OK, b"tried\n")}))


def test_an_attack_that_did_not_run_to_its_end_proves_nothing() -> None:
    with pytest.raises(SlotFailed, match="network: did not run to its end"):
        _check(FakeSlot(answers={"network": _report(Outcome.OK, b"")}))


def test_a_bait_that_nobody_can_take_is_named() -> None:
    slot = FakeSlot()
    slot.stdout_of_bait = b"nothing"

    with pytest.raises(SlotFailed, match="the bait"):
        _check(slot)


@pytest.mark.parametrize("found", [python_canaries("x86_64"), python_canaries("aarch64"), bash_canaries()])
def test_canaries_have_names_of_their_own_and_end_soon(found: list[Canary]) -> None:
    names = [canary.name for canary in found]

    assert len(names) == len(set(names))
    assert max(canary.limits.cpu_s for canary in found) <= 5.0


_AS_ANOTHER_USER = """
import sys, types
for name, path in (("funicular", []), ("funicular.rewards", [sys.argv[1]])):
    module = types.ModuleType(name); module.__path__ = path; sys.modules[name] = module
from funicular.rewards.sandbox.self_test import check_slot
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.types import Level
slot = SlotProcess(role=SlotRole.CANDIDATE, level=Level(sys.argv[2]), name="other user", preload=())
check_slot(slot)
print(slot.details["user"])
slot.kill()
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", [12345, 0])
def test_a_slot_holds_whoever_its_owner_is(level: Level, user: int) -> None:
    """With an interpreter that every user may read; where only root may, jobs keep the owner's user at L1."""
    skip_unless_possible(level)
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    is_new = "import sys; sys.exit(sys.version_info < (3, 11))"
    if os.getuid() != 0 or python is None or subprocess.run([python, "-c", is_new]).returncode:
        pytest.skip("needs root, and a Python 3.11 that every user may read")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        rewards = Path(folder, "rewards")
        shutil.copytree(Path(canaries.__file__).parent.parent, rewards)
        done = subprocess.run(
            [python, "-c", _AS_ANOTHER_USER, str(rewards), level.value],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
            user=user,
            group=user,
            extra_groups=[],
        )

    assert done.returncode == 0, done.stderr
    assert done.stdout == ("its own\n" if user == 0 else "the owner's\n")
