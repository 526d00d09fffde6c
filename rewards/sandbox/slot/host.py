"""The slot host: a warm interpreter, confined, that forks one job at a time.

Its owner starts it by exec, with an empty environment, and talks to it over one socket: first a frame with the
`Setup`, then frames with jobs. At L3 this process becomes two: one that waits outside the pid namespace, so that
the owner has a process to kill and reap, and PID 1 inside, which serves. PID 1's death kills all inside.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from funicular.rewards.sandbox.slot import job as jobs
from funicular.rewards.sandbox.slot import kernel, landlock, namespaces, users, visible, wire
from funicular.rewards.sandbox.slot.native import NativePrograms, compile_limits
from funicular.rewards.sandbox.slot.place import MemoryGauge, Place
from funicular.rewards.sandbox.slot.place_l1 import WORK, FolderPlace
from funicular.rewards.sandbox.slot.place_l3 import NamespacePlace
from funicular.rewards.sandbox.slot.usage import Descendants
from funicular.rewards.sandbox.slot.watch import OwnerGone, Stream
from funicular.rewards.sandbox.slot.work import Work, receive
from funicular.rewards.sandbox.types import Level, Outcome

_HIGH_FD = 64
_FIRST_FREE_FD = 10
"""Above all that jobs have; a descriptor of ours below could be overwritten by one of theirs."""

_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the owner wants."""

    level: Level
    native: bool
    number: int
    """Of the slot on its node: jobs of different slots have different users where possible."""
    preload: list[str]
    """Modules imported before the first job."""
    site: str | None
    """Folder of third-party modules."""
    canary: str
    folder: str
    """L1: holds the working folder and the canary; empty at L3."""


def main() -> NoReturn:
    """Serve until the owner closes the socket, whose descriptor is the first argument."""
    control = _high_control(int(sys.argv[1]))
    _reserve_low_descriptors()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job may send it to PID 1; a handler would make it count
    # Python ignores it; a job's file over the limit should end the job, not be one more OSError
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        header, _ = wire.receive(control)
        setup = Setup(**{**header, "level": Level(header["level"])})
    except wire.SlotGone:
        os._exit(0)
    try:
        place, gauge, details = _enter(setup, control)
        details["landlock"] = f"version {landlock.abi()}"
        details["denied calls"] = "counted" if place.counts_denied else "not counted"
        _preload(setup)
    except BaseException as error:
        wire.send(control, {"failed": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)})
        os._exit(1)
    wire.send(control, {"ready": details, "rss_mib": gauge.resident() / 2**20})
    try:
        while True:
            _serve_one(place, gauge, control)
    except (OwnerGone, wire.SlotGone, ConnectionError):
        place.leave()
        os._exit(0)


def _high_control(fd: int) -> socket.socket:
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    os.close(fd)
    return socket.socket(fileno=high)


def _reserve_low_descriptors() -> None:
    while os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) < _FIRST_FREE_FD:
        pass


def _enter(setup: Setup, control: socket.socket) -> tuple[Place, MemoryGauge, dict[str, str]]:
    """Become confined, as far as a slot host can be."""
    try:  # the first to die when a node is out of memory
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError as error:
        details = {"oom_score_adj": str(error)}
    else:
        details = {"oom_score_adj": "1000"}
    if setup.level is Level.L3:
        return *_enter_l3(setup, control, details), details
    return *_enter_l1(setup, details), details


def _enter_l3(setup: Setup, control: socket.socket, details: dict[str, str]) -> tuple[Place, MemoryGauge]:
    own_user = namespaces.enter_user_namespace(setup.number)
    namespaces.enter_other_namespaces()
    inside = os.fork()
    if inside:
        control.close()
        _, status = os.waitpid(inside, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.setsid()  # kill(0, ...) in a job must not reach the process that waits outside
    kernel.prctl(kernel.PR_SET_PDEATHSIG, kernel.SIGKILL)
    gauge, descendants = MemoryGauge(), Descendants()
    native = NativePrograms() if setup.native else None
    shown = visible.interpreter_folders()
    found = visible.packages(setup.site, setup.preload)
    namespaces.build_root(
        namespaces.RootPlan(
            read_only=shown,
            elsewhere={path: f"{namespaces.SITE}/{name}" for name, path in found.items()},
            hidden=visible.third_party_folders(shown),
            canary=json.dumps({"expected_output": setup.canary}),
            native=setup.native,
        )
    )
    if native is not None:
        native.mount()
    _become_bare(namespaces.SITE, home=namespaces.WORK)
    details["user"] = "its own" if own_user else "the owner's"
    return NamespacePlace(gauge, native, descendants, own_user=own_user), gauge


def _enter_l1(setup: Setup, details: dict[str, str]) -> tuple[Place, MemoryGauge]:
    gauge = MemoryGauge()
    shown = visible.real_folders([*visible.interpreter_folders(), *_LIBRARIES])
    found = visible.packages(setup.site, setup.preload)
    site = f"{setup.folder}/site"
    os.mkdir(site, 0o755)
    for name, path in found.items():
        os.symlink(path, f"{site}/{name}")
    own_user = users.change(setup.folder, [*shown, *found.values()])
    details["user"] = "its own" if own_user else "the owner's"
    _become_bare(site, home=f"{setup.folder}/{WORK}")
    kernel.drop_capabilities()
    return FolderPlace(setup.folder, shown, [site, *found.values()], gauge, Descendants(), own_user=own_user), gauge


def _become_bare(site: str, home: str) -> None:
    """No environment, no privileges to gain, nobody may look into this process or what it forks."""
    os.environ.clear()
    os.environ.update(LANG="C.UTF-8", HOME=home, TMPDIR=home, PATH="/usr/bin:/bin")
    os.chdir("/")
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_bounding_set()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    sys.path[:] = [folder for folder in sys.path if folder]
    sys.path.append(site)


def _preload(setup: Setup) -> None:
    for name in setup.preload:
        importlib.import_module(name)
    gc.collect()
    gc.disable()  # nor should a collection copy the pages that all jobs share
    gc.freeze()


def _serve_one(place: Place, gauge: MemoryGauge, control: socket.socket) -> None:
    work = receive(control)
    try:
        report, streams = _run(work, place, control)
        report["worn"] = place.clean()
    except jobs.JobLost as error:
        report, streams = {"lost": str(error)}, []
    finally:
        work.close()
    outputs = [stream.data() for stream in streams]
    wire.send(control, {**report, "rss_mib": gauge.resident() / 2**20}, *outputs)
    for output in outputs:
        output.release()
    for stream in streams:
        stream.close()


def _run(work: Work, place: Place, control: socket.socket) -> tuple[dict[str, Any], list[Stream]]:
    """Run a job; compile first what it needs and this slot has not, or no longer has."""
    if work.kind is wire.JobKind.COMPILE and not place.needs_compiling(work):
        return jobs.nothing_to_do(), []
    if place.needs_compiling(work) and work.kind is not wire.JobKind.COMPILE:
        report, streams = jobs.run(work.compilation(compile_limits(work.limits)), place, control)
        place.clean()
        if report["outcome"] is not Outcome.OK:
            return report, streams
        for stream in streams:
            stream.close()
    return jobs.run(work, place, control)
