"""A fork ends at its limits, and nothing of what it started outlives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCENARIOS = """
import ctypes, os, sys, time
from pathlib import Path
from funicular.rewards import processes
from funicular.rewards.forks import *

def answers(send):
    send(b"one"); send(b"two")

def loops_after_the_first(send):
    send(b"one")
    while True:
        pass

def loops_in_threads(send):
    import hashlib, threading
    def burn():
        while True:
            hashlib.sha256(bytes(1 << 20))
    for _ in range(4):
        threading.Thread(target=burn).start()
    burn()

def sleeps(send):
    time.sleep(60)

def allocates(send):
    send(bytes(200 << 20)[:3]); bytes(300 << 20)

def exits(send):
    os._exit(7)

def crashes(send):
    ctypes.string_at(0)

def raises(send):
    raise KeyError("x")

def says_too_little(send):
    send(b"one")

def says_too_much(send):
    send(b"one"); send(bytes(MAX_BYTES + 1))

def closes_its_descriptors(send):
    os.closerange(3, 256); time.sleep(60)

def holds_no_private_descriptor(send):
    os.write(int(sys.argv[2]), b"x")

def starts_a_daemon(send):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(sys.argv[2]).write_text(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    while not Path(sys.argv[2]).exists() or not Path(sys.argv[2]).read_text():
        time.sleep(0.01)
    send(b"one"); send(b"two")

def daemon_holds_the_pipe(send):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
    os._exit(3)
"""
MAIN = """
import json
become_subreaper()
wall_s = 0.5 if sys.argv[1] == "sleeps" else 30.0
limits = ForkLimits(cpu_s=(0.3, 0.3), wall_s=(wall_s, wall_s), memory_mib=256)
private = [int(sys.argv[2])] if sys.argv[1] == "holds_no_private_descriptor" else []
report = run_forked(globals()[sys.argv[1]], limits, private=private)
left = processes.descendants(os.getpid())
print(json.dumps([[f.decode() for f in report.frames], report.ending, report.message, left]))
"""


def outcome(scenario: str, argument: str = "") -> tuple[list[str], str, str]:
    """Frames, ending and message, from a process of its own; none that it started is left."""
    done = subprocess.run(
        [sys.executable, "-c", SCENARIOS + MAIN, scenario, argument], capture_output=True, timeout=60, check=True
    )
    frames, ending, message, left = json.loads(done.stdout)
    assert left == []
    return frames, ending, message


def test_all_answers_come_in_order() -> None:
    assert outcome("answers") == (["one", "two"], "done", "")


@pytest.mark.parametrize("scenario", ["loops_after_the_first", "loops_in_threads"])
def test_cpu_time_ends_a_fork_and_what_it_answered_before_stays(scenario: str) -> None:
    frames, ending, message = outcome(scenario)
    assert frames == (["one"] if scenario == "loops_after_the_first" else [])
    assert (ending, message) == ("cpu", "no answer in 0.3 s of CPU time")


def test_wall_time_ends_a_fork_that_uses_no_cpu() -> None:
    frames, ending, message = outcome("sleeps")
    assert (frames, ending) == ([], "wall")
    assert "no answer in 0.5 s" in message


def test_memory_is_counted_above_what_the_fork_begins_with() -> None:
    frames, ending, message = outcome("allocates")
    assert (frames, ending) == (["\0\0\0"], "memory")
    assert "256 MiB (reward.memory_mib)" in message


@pytest.mark.parametrize(
    ("scenario", "frames", "says"),
    [
        ("exits", [], "exit code 7"),
        ("crashes", [], "exit code -11"),
        ("raises", [], "exit code 1"),
        ("says_too_little", ["one"], "exit code 0"),
        ("says_too_much", ["one"], "at most"),
        ("closes_its_descriptors", [], "died"),
    ],
)
def test_a_fork_that_ends_before_its_last_answer_has_died(scenario: str, frames: list[str], says: str) -> None:
    found, ending, message = outcome(scenario)
    assert (found, ending) == (frames, "died")
    assert says in message


def test_a_fork_has_no_private_descriptor_of_its_parent() -> None:
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", SCENARIOS + MAIN, "holds_no_private_descriptor", str(writing)],
        capture_output=True,
        pass_fds=[writing],
        timeout=60,
        check=True,
    )
    os.close(writing)
    assert "Bad file descriptor" in done.stderr.decode()
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_daemon_that_left_session_and_parent_is_killed(tmp_path: os.PathLike[str]) -> None:
    pid_file = os.path.join(tmp_path, "pid")
    assert outcome("starts_a_daemon", pid_file)[1] == "done"
    with open(pid_file) as file, pytest.raises(ProcessLookupError):
        os.kill(int(file.read()), 0)


def test_the_end_of_a_fork_is_seen_while_its_daemon_holds_the_pipe() -> None:
    assert outcome("daemon_holds_the_pipe")[1:] == ("died", "the reward process died (exit code 3)")
