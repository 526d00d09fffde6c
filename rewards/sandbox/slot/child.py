"""The forked process of one job: its descriptors, its limits, its walls, then judged code."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import NoReturn

from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.slot import limits as resource_limits
from funicular.rewards.sandbox.slot.confinement import FAILED, Walls, confine
from funicular.rewards.sandbox.slot.runtime import program, serve, tester
from funicular.rewards.sandbox.slot.wire import CALLS_FD, RESULT_FD, STDERR_FD, STDIN_FD, STDOUT_FD, JobKind
from funicular.rewards.sandbox.slot.work import Work

_FIRST_UNUSED_FD, _LAST_FD = CALLS_FD + 1, 0xFFFFFFFF
SETUP_FAILED = 121
"""Exit status of a process that never ran judged code. Only what it said on the handoff socket counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """What a job gets, under whichever numbers the slot host has it; all above the job's own."""

    stdin: int
    stdout: int
    stderr: int
    result: int | None
    calls: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a job stands on: all that the slot host prepared for it."""

    walls: Walls
    folder: str
    rules_fd: int | None
    host_pid: int
    handoff: socket.socket
    limits: resource_limits.Plan


def run(work: Work, descriptors: Descriptors, ground: Ground, argv: list[str] | None) -> NoReturn:
    """Turn this process, a fresh fork, into the job. Never returns.

    Args:
        argv: the program to execute; None: run Python in this process.
    """
    try:
        _take_descriptors(descriptors)
        os.chdir(ground.folder)
        resource_limits.apply(ground.limits)
        confine(ground.walls, rules_fd=ground.rules_fd, host_pid=ground.host_pid, handoff=ground.handoff)
        kernel.syscall("close_range", _FIRST_UNUSED_FD, _LAST_FD, 0)
    except BaseException as error:
        _give_up(ground.handoff, error)
    try:
        if argv is not None:
            os.execve(argv[0], argv, dict(os.environ))
        source = bytes(work.source)
        if work.kind is JobKind.PROGRAM:
            program.run_program(source)
        elif work.kind is JobKind.SERVE:
            serve.serve(source)
        else:
            tester.run_tester(source, work.options)
    finally:
        os._exit(SETUP_FAILED)


def _take_descriptors(given: Descriptors) -> None:
    for fd, number in (
        (given.stdin, STDIN_FD),
        (given.stdout, STDOUT_FD),
        (given.stderr, STDERR_FD),
        (given.result, RESULT_FD),
        (given.calls, CALLS_FD),
    ):
        if fd is None:
            os.close(number)
        else:
            os.dup2(fd, number)


def _give_up(handoff: socket.socket, error: BaseException) -> NoReturn:
    """Tell the slot host why. Where the filter stands already, it is silent: the host takes it for lost."""
    try:
        handoff.send(FAILED + f"{type(error).__name__}: {error}".encode()[:900])
    finally:
        os._exit(SETUP_FAILED)
