"""Kills a process at every change that it makes to the disk, one after the other: `python -m tests.crashes`.

A process of its own that forks: importing takes longer than what is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from funicular.launch.accounts import Position
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import CheckpointConfig
from funicular.launch.loop import train
from tests.fake_store import faulty_store
from tests.fakes import fake_run

DEADLINE_S = 300
LIMIT = 200
POSITION = Position(released=0, drawn=0, open={})
_WRITING = os.O_WRONLY | os.O_RDWR


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_change(folder: Path, number: int) -> None:
    """From now on: die before the change of that number, of whatever thread, below a folder."""
    counter = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        # Names in other events may be relative to an open folder.
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if (changes or (writes and str(arguments[0]).startswith(str(folder)))) and next(counter) == number:
            kill()

    sys.addaudithook(hook)


def watch_until(number: int) -> Callable[[str, str], None]:
    counter = itertools.count()

    def watch(operation: str, path: str) -> None:
        if next(counter) == number:
            kill()

    return watch


async def save(checkpoints: Checkpoints, step: int, text: str, ledger: Path) -> None:
    async def save_learner(folder: str) -> None:
        for name in ("a", "b"):
            (Path(folder) / name).write_text(text)

    await checkpoints.save(step, POSITION, None, save_learner, ledger=ledger)
    await checkpoints.settle()


def make(folder: Path, store: Any = None, keep_last: int = 1) -> Checkpoints:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "ledger.jsonl").write_text('{"event":"attempt","attempt":1}\n')
    return Checkpoints(folder / "checkpoints", CheckpointConfig(keep_last=keep_last), store)


def one_checkpoint(folder: Path) -> None:
    asyncio.run(save(make(folder), 1, "first", folder / "ledger.jsonl"))


def local(folder: Path, number: int) -> None:
    """A checkpoint is there; another is saved."""
    checkpoints = make(folder)
    kill_at_change(folder, number)
    asyncio.run(save(checkpoints, 2, "second", folder / "ledger.jsonl"))


def again(folder: Path, number: int) -> None:
    """A checkpoint is there; its step is saved once more."""
    checkpoints = make(folder)
    kill_at_change(folder, number)
    asyncio.run(save(checkpoints, 1, "second", folder / "ledger.jsonl"))


def one_in_the_store(folder: Path) -> None:
    calm = make(folder, faulty_store(folder / "store", lambda operation, path: None))
    asyncio.run(save(calm, 1, "first", folder / "ledger.jsonl"))


def store(folder: Path, number: int) -> None:
    """A checkpoint is in the store; another is uploaded."""
    checkpoints = make(folder, faulty_store(folder / "store", watch_until(number)))
    asyncio.run(save(checkpoints, 2, "second", folder / "ledger.jsonl"))


def three_here_and_there(folder: Path) -> None:
    for place in ("here", "there"):
        calm = None if place == "here" else faulty_store(folder / "store", lambda operation, path: None)
        checkpoints = make(folder / place, calm, keep_last=3)
        for step in (1, 2, 3):
            asyncio.run(save(checkpoints, step, str(step), folder / place / "ledger.jsonl"))
    shutil.rmtree(folder / "there" / "checkpoints")


def forget(folder: Path, number: int) -> None:
    """Three checkpoints in a run folder and in a store; the last two are forgotten."""
    there = make(folder / "there", faulty_store(folder / "store", watch_until(number)), keep_last=3)
    kill_at_change(folder, number)
    asyncio.run(make(folder / "here", keep_last=3).forget_after(1))
    asyncio.run(there.forget_after(1))


def nothing(folder: Path) -> None:
    folder.mkdir()


def run(folder: Path, number: int) -> None:
    """A run of the loop; the upload of step 4 is killed after as many files."""
    seen = itertools.count()

    def watch(operation: str, path: str) -> None:
        if "step_000004" in path and operation == "write" and next(seen) == number:
            kill()

    asyncio.run(train(fake_run(folder, max_steps=8, checkpoint_every=2, store=faulty_store(folder / "store", watch))))


SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path, int], None]]] = {
    "local": (one_checkpoint, local),
    "again": (one_checkpoint, again),
    "store": (one_in_the_store, store),
    "forget": (three_here_and_there, forget),
    "run": (nothing, run),
}
"""What stands before, made once and copied; and what is killed."""


def outcomes(scenario: str, folder: Path) -> list[int]:
    """Run a scenario with a kill at each change in turn, each in the folder of its number, until one survives."""
    command = [sys.executable, "-m", "tests.crashes", scenario, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def in_child(function: Callable[[], None]) -> int:
    """Its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    prepare, act = SCENARIOS[sys.argv[1]]
    folder = Path(sys.argv[2])
    assert in_child(lambda: prepare(folder / "before")) == 0
    statuses: list[int] = []
    while not statuses or statuses[-1] == -signal.SIGKILL:
        number = len(statuses)
        assert number < LIMIT, "it never survives"
        shutil.copytree(folder / "before", folder / str(number))
        statuses.append(in_child(lambda number=number: act(folder / str(number), number)))  # type: ignore[misc]
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
