"""What a program of the suites is: its source, its tests, and what must become of it.

Standard library and `funicular.rewards` only: the driver imports this under another user, with another interpreter.
"""

from __future__ import annotations

import os
import secrets
import textwrap
from dataclasses import dataclass
from typing import Any

from funicular.rewards.sandbox.types import (
    CallCase,
    CallTests,
    Comparison,
    Level,
    Limits,
    Outcome,
    StdioCase,
    StdioTests,
    TesterStyle,
    TesterTests,
    TestSet,
)

BOTH = (Level.L3, Level.L1)
FAILURES = frozenset(Outcome) - {Outcome.OK, Outcome.INFRA_ERROR}
"""A hostile program may fail in any way but one: as our own fault, which would mask it instead of failing it."""

TIGHT = Limits(cpu_s=0.5, memory_mib=128, processes=16, output_kib=64, disk_mib=4)
"""Small, so that exhausting them is quick."""
USUAL = Limits()
ROOMY = Limits(cpu_s=3.0, memory_mib=512)
"""For programs that search memory."""

SECRET = "answer-0f3ac59d17e24b86"
"""An expected output that nothing but the trusted side knows. Programs look for SECRET_PATTERN."""
SECRET_PATTERN = "answer-[0-9a-f]{16}"
PEER_SECRET = "peer-9b1c64d2a7f05e38"
"""Stands in the source and the input of the job that runs before: another completion's text."""
PEER_PATTERN = "peer-[0-9a-f]{16}"

RUN_VARIABLE = "FUNICULAR_TESTS_RUN"
RUN = os.environ.get(RUN_VARIABLE) or secrets.token_hex(4)
"""In the names of what a run puts on the machine, so that two runs can share one. Drivers get it from the tests."""
_BAIT, _LEFTOVER = "funicular-bait", "funicular-left"
"""What programs write for the two names below: see `named`."""
BAIT = f"{_BAIT}-{RUN}"
"""Name of what the tests put on the machine to be stolen or broken: an abstract socket, a folder in /tmp."""
BAIT_FOLDER = f"/tmp/{BAIT}"
BAIT_VARIABLE = "FUNICULAR_BAIT"
BAIT_SHM_KEY = 1 + int(RUN, 16) % 0x7FFFFFFE
LEFTOVER = f"{_LEFTOVER}-{RUN}"
"""How the names of files begin that programs try to leave on the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileProgram:
    """It must not pass, must leave nothing behind, and the next job on its slot must pass."""

    name: str
    why: str
    """What it tries, in one line."""
    source: str
    tests: TestSet
    outcomes: frozenset[Outcome] = FAILURES
    """Of these, one must be its outcome."""
    language: str = "python"
    levels: tuple[Level, ...] = BOTH
    limits: Limits = TIGHT
    reads_canary: bool = False
    """Whether the judgement must say that it read the canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenignProgram:
    """It must pass."""

    name: str
    source: str
    tests: TestSet
    language: str = "python"
    levels: tuple[Level, ...] = BOTH
    needs: str = ""
    """A module without which it is left out."""
    limits: Limits = USUAL


def code(text: str) -> str:
    """Source that was written indented."""
    return textwrap.dedent(text).lstrip("\n")


def named(source: str) -> str:
    """The source as this run judges it: `funicular-bait` and `funicular-left` in it are this run's names."""
    return source.replace(_BAIT, BAIT).replace(_LEFTOVER, LEFTOVER)


def stdio(*pairs: tuple[str, str], **comparison: Any) -> StdioTests:
    """Tests of (stdin, stdout) pairs."""
    cases = tuple(StdioCase(stdin=given, stdout=expected) for given, expected in pairs)
    return StdioTests(cases=cases, comparison=Comparison(**comparison))


def calls(*pairs: tuple[tuple[Any, ...], Any], function: str = "solve", **comparison: Any) -> CallTests:
    """Tests of (arguments, expected) pairs."""
    cases = tuple(CallCase(arguments=arguments, expected=expected) for arguments, expected in pairs)
    return CallTests(function=function, cases=cases, comparison=Comparison(**comparison))


def judged_by(style: TesterStyle, source: str = "", *statements: str, entry_point: str | None = None) -> TesterTests:
    """Tests that are code."""
    return TesterTests(style=style, source=code(source), statements=statements, entry_point=entry_point)


DOUBLE = stdio(("21\n", "42\n"))
"""The task of most programs that attack through stdio: print twice the number."""
TELL_SECRET = stdio(("", SECRET + "\n"))
"""The task of programs that steal: print what only the trusted side knows."""
PLANT_AND_FIND = stdio(("plant\n", "planted\n"), ("find\n", "found\n"))
"""The task of programs that persist: each case is a job, and the second passes only if it finds what the first left."""


def attack(body: str) -> str:
    """Source for DOUBLE that solves the task only if the function of this body says that the attack came through."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return f"{TOOLS}\ndef attack():\n{lines}\n\nassert attack(), 'held'\nprint(int(input()) * 2)\n"


def theft(body: str) -> str:
    """Source for TELL_SECRET; the body is a function's that yields texts or bytes in which the secret may stand."""
    return hauling(body) + _SEARCH


def hauling(body: str) -> str:
    """Source of `haul()`, a generator with this body."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return f"{TOOLS}\nimport re\ndef haul():\n{lines}\n"


def persistent(plant: str, find: str) -> str:
    """Source for PLANT_AND_FIND from the bodies of two functions; `find` returns whether the plant was there."""
    bodies = [textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") for body in (plant, find)]
    return f"{TOOLS}\ndef plant():\n{bodies[0]}\n\ndef find():\n{bodies[1]}\n{_PHASES}"


_SEARCH = f"""
for text in haul():
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    found = re.search(rb"{SECRET_PATTERN}", text)
    if found:
        print(found.group().decode())
        break
else:
    print("nothing")
"""

_PHASES = """
if input() == "plant":
    try:
        plant()
    except Exception as error:
        print(repr(error), file=sys.stderr)
    print("planted")
else:
    print("found" if find() else "gone")
"""

_NUMBERS = {  # x86_64, aarch64
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_robust_list": (274, 100),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_create_ruleset": (444, 444),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mlockall": (151, 230),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setscheduler": (144, 119),
    "seccomp": (317, 277),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}

TOOLS = f"""
import errno, os, sys
NUMBERS = {_NUMBERS!r}
def call(name, *arguments):
    "The system call's result, or minus its errno."
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = name if isinstance(name, int) else NUMBERS[name][os.uname().machine == "aarch64"]
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *plain)
    return result if result >= 0 else -ctypes.get_errno()
def reached(name, *arguments):
    "Whether the kernel acted on the call, or found fault with its arguments, instead of refusing it."
    result = call(name, *arguments)
    print(name, result, file=sys.stderr)
    return result not in (-errno.EPERM, -errno.EACCES, -errno.ENOSYS)
def worked(action, *arguments):
    "Whether an action of Python went through."
    try:
        action(*arguments)
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return False
    return True
"""
"""What hostile programs share; it imports ctypes only when used, which some attacks do without."""

FORGING = """
import json, os, sys
def request_id():
    "The id of the call that is being answered, from the frames of the runtime."
    frame = sys._getframe()
    while frame:
        request = frame.f_locals.get("request")
        if isinstance(request, dict) and "id" in request:
            return request["id"]
        frame = frame.f_back
    return 0
def write(data):
    "Bytes on the call channel, as they are."
    view = memoryview(data)
    while view:
        view = view[os.write(4, view):]
def say(*messages):
    "Lines on the call channel."
    for message in messages:
        write((message if isinstance(message, str) else json.dumps(message)).encode() + b"\\n")
"""
"""What programs share that speak on the call channel themselves."""
