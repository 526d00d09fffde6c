"""Reward functions as a user writes them, good and bad: tests copy this file beside a recipe as `user.py`."""

import ctypes
import os
import socket
import sys
import time
from pathlib import Path


def score(completions, **_):
    return [float(len(c)) for c in completions]


def hang_on_loop(completions, **_):
    for text in completions:
        while "loop" in text:
            pass
    return [1.0] * len(completions)


def count_group(completions, **_):
    for text in completions:
        while "loop" in text:
            pass
    return [float(len(completions))] * len(completions)


def crash_on_exit(completions, **_):
    if any("exit" in c for c in completions):
        os._exit(7)
    return [1.0] * len(completions)


def crash_once(completions, *, marker, **_):
    if not Path(marker).exists():
        Path(marker).touch()
        ctypes.string_at(0)
    return [1.0] * len(completions)


def raise_once(completions, *, marker, **_):
    if not Path(marker).exists():
        Path(marker).touch()
        raise OSError("not yet")
    return [1.0] * len(completions)


def raise_on_bad(completions, **_):
    if any("bad" in c for c in completions):
        raise KeyError("bad text")
    return [1.0] * len(completions)


def quit_always(completions, **_):
    sys.exit(0)


def raise_together(completions, **_):
    if len(completions) > 1:
        raise ValueError("only one at a time")
    return [1.0]


def none(completions, **_):
    return [None] * len(completions)


def none_for_some(completions, **_):
    return [None if "skip" in c else 2.0 for c in completions]


def nan(completions, **_):
    return [float("nan") if "nan" in c else 1.0 for c in completions]


def words(completions, **_):
    return ["good"] * len(completions)


def too_few(completions, **_):
    return [1.0]


def noisy(completions, **_):
    print("to stdout " * 1000)
    os.write(1, b"raw bytes to descriptor 1")
    sys.stdout.flush()
    assert sys.stdin.read() == ""
    return [1.0] * len(completions)


def long_error(completions, **_):
    raise RuntimeError("x" * 50_000_000)


def start_helper(completions, **_):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os._exit(3)


SEEN = []


def calls_before(completions, **_):
    SEEN.append(completions)
    return [float(len(SEEN) - 1)] * len(completions)


def allocate_on_big(completions, **_):
    for text in completions:
        bytes(400 << 20 if "big" in text else 1)
    return [1.0] * len(completions)


def environment(completions, *, names, **_):
    return [float(all(os.environ.get(name) == value for name, value in names.items()))] * len(completions)


def unscored(completions, **_):
    return [RuntimeError("no score for it") if "bad" in c else 1.0 for c in completions]


def connect(completions, *, port, **_):
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        return [1.0] * len(completions)


def count_calls_and_fail(completions, *, marker, **_):
    with open(marker, "a") as file:
        file.write(f"{len(completions)} ")
    raise ConnectionError("no endpoint")


def contains(completions, *, word, **_):
    return [2.0 if word in c else 0.0 for c in completions]


def extracted(details, **_):
    return [float(one["extracted"]) for one in details]


def leave_a_daemon(completions, *, marker, **_):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(marker).write_text(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    while not Path(marker).exists() or not Path(marker).read_text():
        time.sleep(0.01)
    return [1.0] * len(completions)


def columns(prompts, completions, level, answer, task_id, correct, completion_ids, **_):
    assert prompts == [[{"role": "user", "content": "Q"}]] * 2, prompts
    assert completions[0] == [{"role": "assistant", "content": "5"}]
    assert (level, answer, task_id) == ([3, 3], ["5", "5"], ["t", "t"])
    return [float(c) + len(ids) for c, ids in zip(correct, completion_ids, strict=True)]


def secrets(completions, **_):
    return [float("A_SECRET" in os.environ)] * len(completions)
