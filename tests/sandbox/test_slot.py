"""Slots: what a job gets, what it can use up, and that nothing of it is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from funicular.rewards.sandbox import slot_process
from funicular.rewards.sandbox.slot.namespaces import FIRST_JOB_UID
from funicular.rewards.sandbox.slot.visible import SHOWN_PACKAGES
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import (
    DEFAULT_PRELOAD,
    SlotFailed,
    SlotLost,
    SlotProcess,
    SlotRole,
    site_folder,
)
from funicular.rewards.sandbox.types import Level, Outcome
from tests.slots import LEVELS, QUICK, below, run, skip_unless_possible, slot_of

_DEADLINE_S = 10.0
_RECURSION = "import sys\nsys.setrecursionlimit(10**6)\n{}\ndef f(n): return n and f(n - 1) + 1\nprint(f(50000))"

ENDS = {
    "ok": ("print(1)", Outcome.OK),
    "exit status": ("raise SystemExit(3)", Outcome.RUNTIME_ERROR),
    "exception": ("1 / 0", Outcome.RUNTIME_ERROR),
    "processor time": ("while True: pass", Outcome.CPU),
    "processor time, ignoring the signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        Outcome.CPU,
    ),
    "memory": ("x = bytearray(1 << 30)", Outcome.MEMORY),
    "memory, bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", Outcome.MEMORY),
    "memory, forgiven": ("try: bytearray(1 << 30)\nexcept MemoryError: print(1)", Outcome.OK),
    "output": ("while True: print('x' * 1000)", Outcome.OUTPUT),
    "output at once": ("import os\nos.write(1, b'x' * 200000)", Outcome.OUTPUT),
    "errors without end, then success": ("import os\nfor _ in range(200): os.write(2, b'x' * 1000)", Outcome.OK),
    "a large file": ("open('f', 'wb').write(bytes(1 << 24))", Outcome.OUTPUT),
    "own signal": ("import os\nos.kill(os.getpid(), 15)", Outcome.SIGNAL),
    "abort": ("import os\nos.abort()", Outcome.SIGNAL),
    "killed by itself": ("import os\nos.kill(os.getpid(), 9)", Outcome.SIGNAL),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", Outcome.SIGNAL),
    "denied calls, then failure": ("import socket\nsocket.socket()", Outcome.FORBIDDEN),
    "denied calls, then success": ("import os\ntry: os.fork()\nexcept OSError: print(1)", Outcome.OK),
    "deep recursion": (_RECURSION.format(""), Outcome.OK),
    "deep recursion through C": (_RECURSION.format("import functools\n@functools.cache"), Outcome.OK),
    "a limit lowered": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))", Outcome.OK),
    "a limit raised": ("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", Outcome.RUNTIME_ERROR),
}


@pytest.fixture(scope="module", params=LEVELS)
def slot(request: pytest.FixtureRequest) -> Iterator[SlotProcess]:
    """One slot for judged Python; the tests of this module share it, as submissions do."""
    yield from slot_of(SlotRole.CANDIDATE, request.param, preload=DEFAULT_PRELOAD)


def test_a_program_reads_its_input_and_prints(slot: SlotProcess) -> None:
    report = run(slot, "print(sum(map(int, input().split())))", "1 2 3\n")

    assert (report.outcome, report.exit_code, report.stdout) == (Outcome.OK, 0, b"6\n")
    assert 0 < report.cpu_s < 1
    assert report.peak_rss_mib > 1


@pytest.mark.parametrize("name", ENDS)
def test_each_end_has_its_outcome(slot: SlotProcess, name: str) -> None:
    source, outcome = ENDS[name]

    # little enough to be used up, or enough to be no matter, on however busy a machine
    report = run(slot, source, limits=replace(QUICK, cpu_s=0.1 if outcome is Outcome.CPU else 5.0))

    assert report.outcome is outcome, report


def test_a_sleeper_is_ended_by_wall_time(slot: SlotProcess) -> None:
    source = "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)"

    assert run(slot, source, limits=replace(QUICK, cpu_s=0.01)).outcome is Outcome.WALL


def test_output_beyond_the_limit_is_cut(slot: SlotProcess) -> None:
    report = run(slot, "import os, sys\nsys.stderr.write('e' * 100000)\nsys.stderr.flush()\nprint('o' * 100000)")

    assert (len(report.stdout), len(report.stderr)) == (64 << 10, 64 << 10)


def test_denied_calls_are_counted_by_name(slot: SlotProcess) -> None:
    source = """
import os, socket
for attempt in (socket.socket, socket.socket, os.fork, lambda: os.execv("/usr/bin/true", ["true"])):
    try: attempt()
    except OSError: pass
"""
    report = run(slot, source)

    assert report.outcome is Outcome.OK
    assert dict(report.denied) == {"socket": 2, "clone": 1, "execve": 1}


def test_too_many_denied_calls_end_the_job(slot: SlotProcess) -> None:
    source = "import socket\nwhile True:\n  try: socket.socket()\n  except OSError: pass"

    report = run(slot, source, limits=replace(QUICK, cpu_s=10.0))

    assert report.outcome is Outcome.FORBIDDEN
    assert report.denied["socket"] == 1001


def test_threads_up_to_the_limit_work_and_no_more(slot: SlotProcess) -> None:
    source = """
import threading, time
threading.stack_size(1 << 16)
for _ in range(COUNT): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(threading.active_count())
time.sleep(0.5)
"""
    limits = replace(QUICK, processes=10, cpu_s=5.0)

    assert run(slot, source.replace("COUNT", "9"), limits=limits).stdout == b"10\n"
    assert run(slot, source.replace("COUNT", "60"), limits=limits).outcome in (Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN)


def test_many_small_files_fill_the_disk_not_the_node(slot: SlotProcess) -> None:
    source = "import itertools\nfor i in itertools.count(): open(f'{i}', 'wb').write(bytes(1 << 20))"

    assert run(slot, source, limits=replace(QUICK, cpu_s=5.0)).outcome is Outcome.OUTPUT


def test_a_closed_folder_is_no_offence_however_long_the_job_runs(slot: SlotProcess) -> None:
    source = """
import os, time
os.umask(0)
os.mkdir("closed", 0); os.mkdir("listed", 0o400); os.mkdir("entered", 0o300)
open("entered/file", "w").write("x")
time.sleep(0.5)
print(os.stat("entered/file").st_size)
"""
    report = run(slot, source)

    assert (report.outcome, report.stdout) == (Outcome.OK, b"1\n")


def test_files_in_a_folder_that_cannot_be_listed_count(slot: SlotProcess) -> None:
    source = """
import os, time
os.mkdir("hidden", 0o300)
for i in range(30): open(f"hidden/{i}", "wb").write(bytes(1 << 20))
time.sleep(2)
"""
    assert run(slot, source, limits=replace(QUICK, cpu_s=5.0)).outcome is Outcome.OUTPUT


def test_nothing_of_a_job_is_left_on_disk(slot: SlotProcess) -> None:
    leave = """
import os
os.umask(0o777)
open("file", "w"); os.mkdir("closed"); os.symlink("/", "link")
os.umask(0)
for _ in range(300): os.mkdir("deep"); os.chdir("deep")
open("file", "w")
"""
    assert run(slot, leave).outcome is Outcome.OK

    assert run(slot, "import os\nprint(os.listdir('.'))").stdout == b"[]\n"


def test_files_that_a_job_deleted_and_holds_count_at_l3_and_disturb_no_later_job(slot: SlotProcess) -> None:
    """At L1 nobody sees them: a hole that docs/sandbox.md names."""
    source = """
import os
for _ in range(40):
    held = os.open("f", os.O_RDWR | os.O_CREAT)
    os.unlink("f")
    for _ in range(3): os.write(held, bytes(1 << 20))
print(held)
"""
    report = run(slot, source, limits=replace(QUICK, cpu_s=5.0))

    assert (report.outcome is Outcome.OK) is (slot.level is Level.L1), report
    assert run(slot, "print(open('f', 'wb').write(bytes(1 << 20)))").stdout == b"1048576\n"


def test_nothing_of_a_job_is_left_in_memory(slot: SlotProcess) -> None:
    secret = "FIND" + "-ME"
    for length in (1, 100, 10000):
        run(slot, f"#{secret}\nimport sys\nx = input()\nprint(x)\nprint(x, file=sys.stderr)", secret * length)
    search = """
import ctypes, gc, os
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
reading, writing = os.pipe()
def readable(page):  # write() says EFAULT where a read would crash
    return libc.write(writing, ctypes.c_void_p(page), ctypes.c_size_t(1)) == 1 and os.read(reading, 1)
gc.unfreeze()
arenas = sorted({id(thing) & ~0xFFFFF for thing in gc.get_objects()})
def pages():
    for arena in arenas:
        yield from range(arena, arena + (1 << 20), 4096)
    page = (libc.sbrk(0) - 1) & ~4095
    while readable(page):
        yield page
        page -= 4096
needle = b"EM-DNIF"[::-1]
itself = id(needle)
searched = hits = 0
for page in pages():
    if readable(page):
        searched += 1
        content = ctypes.string_at(page, 4096)
        at = content.find(needle)
        while at >= 0:
            hits += not itself <= page + at < itself + 64
            at = content.find(needle, at + 1)
        del content
print(searched > 1000, hits)
"""
    report = run(slot, search, limits=replace(QUICK, cpu_s=10.0))

    assert report.stdout == b"True 0\n", report


def test_jobs_of_all_slots_order_sets_alike(slot: SlotProcess) -> None:
    source = "print({'a', 'b', 'c', 'd'}, hash('text'))"
    other = SlotProcess(role=SlotRole.CANDIDATE, level=slot.level, name="other", slot_number=1)
    try:
        assert run(slot, source).stdout == run(other, source).stdout
    finally:
        other.kill()


def test_a_call_channel_reaches_the_job_and_only_it(slot: SlotProcess) -> None:
    ours, theirs = socket.socketpair()
    reports = []
    job = Job(kind=JobKind.SERVE, source=b"def double(x): return 2 * x", limits=QUICK)
    judge = threading.Thread(target=lambda: reports.append(slot.run(job, calls=theirs)))
    judge.start()
    with ours, ours.makefile("rwb") as channel:
        assert "double" in json.loads(channel.readline())["ready"]["functions"]
    judge.join(_DEADLINE_S)

    assert reports[0].outcome is Outcome.OK
    assert theirs.fileno() == -1
    assert run(slot, "import os\nos.fstat(4)").outcome is Outcome.RUNTIME_ERROR


def test_a_tester_returns_its_verdict(slot: SlotProcess) -> None:
    tester = SlotProcess(role=SlotRole.TESTER, level=slot.level, name="tester", slot_number=2)
    ours, theirs = socket.socketpair()
    serve = Job(kind=JobKind.SERVE, source=b"def double(x): return 2 * x", limits=QUICK)
    options = {"style": "asserts", "statements": ["assert double(2) == 4", "assert double(3) == 7"]}
    candidate = threading.Thread(target=slot.run, args=(serve,), kwargs={"calls": theirs})
    candidate.start()
    try:
        report = tester.run(Job(kind=JobKind.TESTER, source=b"", limits=QUICK, options=options), calls=ours)
    finally:
        tester.kill()
        candidate.join(_DEADLINE_S)

    verdict = json.loads(report.result)
    assert (verdict["collected"], verdict["run"], verdict["failed"]) == (2, 2, 1)


@pytest.fixture(params=LEVELS)
def doomed(request: pytest.FixtureRequest) -> Iterator[SlotProcess]:
    """A slot of its own, for tests that end it."""
    yield from slot_of(SlotRole.CANDIDATE, request.param, number=3)


def test_a_slot_that_dies_in_a_job_is_lost(doomed: SlotProcess) -> None:
    killer = threading.Timer(0.3, os.kill, (doomed.pid, signal.SIGKILL))
    killer.start()

    with pytest.raises(SlotLost, match="test-candidate"):
        run(doomed, "import time\ntime.sleep(60)")
    killer.join()


def test_killing_a_stuck_slot_leaves_no_process(doomed: SlotProcess) -> None:
    lost: list[SlotLost] = []

    def sleep() -> None:
        try:
            run(doomed, "import time\ntime.sleep(60)", limits=replace(QUICK, cpu_s=30.0))
        except SlotLost as error:
            lost.append(error)

    job = threading.Thread(target=sleep)
    job.start()
    inside = _eventually(lambda: below(doomed.pid), at_least=2 if doomed.level is Level.L3 else 1)
    for pid in (doomed.pid, *inside):
        os.kill(pid, signal.SIGSTOP)

    doomed.kill()
    job.join(_DEADLINE_S)

    assert lost
    _all_gone({doomed.pid, *inside})


def test_a_slot_that_does_not_end_closes_its_descriptors_once(
    doomed: SlotProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = doomed._process.wait

    def never_ends(timeout: float) -> int:
        raise subprocess.TimeoutExpired("slot", timeout)

    monkeypatch.setattr(doomed._process, "wait", never_ends)
    os.kill(doomed.pid, signal.SIGKILL)
    with pytest.raises(SlotLost, match="did not end"):
        run(doomed, "pass")
    with open(os.devnull) as foreign:  # takes the lowest free descriptor, as the log's number is now
        doomed.kill()
        os.fstat(foreign.fileno())
    with pytest.raises(SlotLost):
        run(doomed, "pass")
    ending(_DEADLINE_S)


def test_numbers_of_slots_differ_between_processes_and_stay_below_the_user_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers: set[int] = set()
    for pid in (100, 101, 102):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        numbers |= {slot_process._number(slot, role) for slot in range(16) for role in SlotRole}
    assert len(numbers) == 3 * 16 * len(SlotRole)
    assert FIRST_JOB_UID + slot_process._NUMBERS <= 65534


def test_a_slot_dies_with_its_owner_and_so_does_its_folder(tmp_path: Path) -> None:
    skip_unless_possible(Level.L1)
    source = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.types import Level
slot = SlotProcess(role=SlotRole.CANDIDATE, level=Level.L1, name="orphan", preload=())
print(slot.pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert os.listdir(tmp_path)
    owner.kill()
    owner.wait(_DEADLINE_S)

    _all_gone({pid})
    assert os.listdir(tmp_path) == []


def test_the_folder_of_an_l1_slot_goes_with_it_however_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_possible(Level.L1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    slot = SlotProcess(role=SlotRole.CANDIDATE, level=Level.L1, name="folder", preload=())
    assert os.listdir(tmp_path)
    deep = "import os\nfor _ in range(20000): os.mkdir('d'); os.chdir('d')"

    assert run(slot, deep, limits=replace(QUICK, cpu_s=20.0)).outcome is Outcome.OUTPUT
    assert run(slot, "import os\nprint(os.listdir('.'))").stdout == b"[]\n"
    slot.kill()

    assert os.listdir(tmp_path) == []


def test_native_slots_need_l3() -> None:
    with pytest.raises(SlotFailed, match="L3"):
        SlotProcess(role=SlotRole.NATIVE, level=Level.L1, name="native")


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(SlotFailed, match="/nowhere/python"):
        SlotProcess(role=SlotRole.CANDIDATE, level=Level.L1, name="none", python="/nowhere/python")


def test_a_module_that_cannot_be_preloaded_is_named() -> None:
    skip_unless_possible(Level.L1)
    with pytest.raises(SlotFailed, match="no_such_module"):
        SlotProcess(role=SlotRole.CANDIDATE, level=Level.L1, name="none", preload=["no_such_module"])


def _eventually(look: Callable[[], set[int]], at_least: int) -> set[int]:
    deadline = time.monotonic() + _DEADLINE_S
    while len(found := look()) < at_least:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def _all_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while alive := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"{alive} live on"
        time.sleep(0.02)


def test_packages_are_hidden_but_for_those_that_programs_need(slot: SlotProcess) -> None:
    """Every folder of packages that the interpreter has, wherever it is, and the one whose numpy is shown."""
    source = """
import numpy, sys, os, glob
for name in ("omegaconf", "yaml", "ray", "funicular.launch"):
    try: __import__(name)
    except ModuleNotFoundError: continue
    print("imported", name)
roots = {sys.base_prefix, "/usr", "/usr/local"}
folders = {f for root in roots for kind in ("site", "dist") for f in glob.glob(f"{root}/lib/python3*/{kind}-packages")}
for folder in folders | {SITE}:
    for name in os.listdir(folder) if os.access(folder, os.R_OK) and LISTS else []:
        print("listed", folder, name)
    for path in glob.glob(f"{folder}/*/__init__.py"):
        if "/numpy/" in path or "/pytest/" in path or any(f"/{n}/" in path for n in SHOWN): continue
        try: print("read", path, open(path).read(10))
        except OSError: pass
print(numpy.arange(3).sum())
"""
    values = {
        "SITE": repr(site_folder(sys.executable)),
        "SHOWN": repr(SHOWN_PACKAGES),
        "LISTS": str(slot.level is Level.L3),
    }
    for name, value in values.items():
        source = source.replace(name, value)

    report = run(slot, source, limits=replace(QUICK, cpu_s=10.0))

    assert report.stdout == b"3\n", report
