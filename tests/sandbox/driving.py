"""Starts drivers (`drive.py`) for the tests: as the tests' own user, or as another one with a copy of the code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.sandbox.types import Level
from tests.sandbox.programs import RUN, RUN_VARIABLE

_ROOT = Path(__file__).parents[2]
_SYSTEM_PYTHON = "/usr/bin/python3.11"
"""Readable for everyone, as a virtual environment in somebody's home is not."""
_OTHER_USER = 12345
_LONGEST_S = 880


class LevelUnavailable(Exception):
    """This machine does not reach the level; says which switch to change."""


class User(StrEnum):
    """Who runs the sandbox."""

    OWN = "own"
    """The user of the tests: root in a container, else somebody."""
    OTHER = "other"
    """A user with no rights at all, which only root can become."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the drivers of one suite saw."""

    parts: list[dict[str, Any]]
    """One of each driver."""

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """By program."""
        return {record["name"]: record for part in self.parts for record in part["records"]}

    def all(self, key: str) -> list[Any]:
        """What all drivers list under a key."""
        return [item for part in self.parts for item in part[key]]


def why_not(user: User) -> str:
    """Why this machine cannot run a suite as this user; empty: it can."""
    if user is User.OWN:
        return ""
    if os.getuid() != 0:
        return "only root can run a driver as another user"
    return "" if Path(_SYSTEM_PYTHON).exists() else f"{_SYSTEM_PYTHON} is missing"


def run_drivers(
    suite: str,
    level: Level,
    user: User,
    *options: str,
    shards: int = 1,
    environment: dict[str, str] | None = None,
) -> Report:
    """Run a suite in `shards` drivers at the same time, each with a part of the programs.

    Raises:
        LevelUnavailable: as this user.
        AssertionError: a driver failed.
    """
    with _home_of(user) as (root, account):
        outs, drivers = [], []
        for shard in range(shards):
            out = root / f"report-{shard}.json"
            out.touch()
            out.chmod(0o666)
            arguments = [
                suite,
                "--level",
                level.value,
                "--out",
                str(out),
                "--shard",
                str(shard),
                "--shards",
                str(shards),
            ]
            python = sys.executable if user is User.OWN else _SYSTEM_PYTHON
            command = [python, "-m", "tests.sandbox.drive", *arguments, *options]
            path = str(_ROOT) if user is User.OWN else str(root)
            variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": str(root), RUN_VARIABLE: RUN}
            variables |= environment or {}
            drivers.append(subprocess.Popen(command, cwd=root, env=variables, stdin=subprocess.DEVNULL, **account))
            outs.append(out)
        statuses = [driver.wait(timeout=_LONGEST_S) for driver in drivers]
        if any(statuses):
            raise AssertionError(f"drivers of {suite} at {level} ended with {statuses}; see their output")
        parts = [json.loads(out.read_text()) for out in outs]
        if unavailable := [part["unavailable"] for part in parts if "unavailable" in part]:
            raise LevelUnavailable(unavailable[0])
        return Report(parts=parts)


def run_or_skip(
    suite: str, level: Level, user: User, *options: str, environment: dict[str, str] | None = None
) -> Report:
    """`run_drivers`; skips the test where this machine cannot run the suite."""
    if reason := why_not(user):
        pytest.skip(reason)
    try:
        return run_drivers(suite, level, user, *options, environment=environment)
    except LevelUnavailable as error:
        pytest.skip(str(error))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the cores busy with processes that do nothing else."""
    loops = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def _home_of(user: User) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder for reports; for the other user with the code that it may read. And how to become that user."""
    with tempfile.TemporaryDirectory(prefix="drivers-") as name:
        root = Path(name)
        if user is User.OWN:
            yield root, {}
            return
        root.chmod(0o755)
        _copy("rewards", root / "funicular" / "rewards")
        _copy("tests/sandbox", root / "tests" / "sandbox")
        (root / "tests" / "__init__.py").touch()
        yield root, {"user": _OTHER_USER, "group": _OTHER_USER, "extra_groups": []}


def _copy(source: str, target: Path) -> None:
    shutil.copytree(_ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (target, *target.rglob("*")):
        with suppress(FileNotFoundError):
            path.chmod(0o755 if path.is_dir() else 0o644)
