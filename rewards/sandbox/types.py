"""Records of the sandbox: what is judged, within which limits, and what came of it.

Standard library only: slot hosts, which run without site-packages, import this too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How well untrusted code is contained. `docs/sandbox.md` says what each holds back, and what not."""

    L3 = "L3"
    """User, mount, pid, network, ipc and uts namespaces, a read-only minimal root, seccomp, Landlock, rlimits."""
    L1 = "L1"
    """Landlock, seccomp and rlimits, for pods without user namespaces."""


class Outcome(StrEnum):
    """What became of a job, or of a whole judgement."""

    OK = "ok"
    WRONG = "wrong"
    RUNTIME_ERROR = "runtime_error"
    """It ended with an exit status other than 0, or an exception."""
    CPU = "cpu"
    WALL = "wall"
    MEMORY = "memory"
    OUTPUT = "output"
    """It wrote more than `Limits.output_kib`, or a file larger than `Limits.disk_mib`."""
    SIGNAL = "signal"
    FORBIDDEN = "forbidden"
    """It failed after system calls that the sandbox denies, or made too many of them."""
    PROTOCOL = "protocol"
    """It said something on the call channel that it was not asked, or that is no plain data."""
    COMPILE_ERROR = "compile_error"
    INFRA_ERROR = "infra_error"
    """Our fault: the slot died or fell silent. Retried once on another slot, then masked; never a reward of 0."""


class Integrity(StrEnum):
    """Whether judged code could have written its own verdict."""

    STRONG = "strong"
    """It only claims outputs; expected values and comparison stay on the trusted side."""
    WEAK = "weak"
    """Tests and judged code share a process. Refused unless `sandbox.allow_weak_integrity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one job: one run of a program on one input, one series of calls, one compilation."""

    cpu_s: float = 2.0
    """Seconds of CPU time, all threads together: the first limit, since wall time depends on the node's load."""
    memory_mib: int = 512
    """Address space beyond what the warm interpreter itself maps."""
    processes: int = 32
    """Threads, and processes where the language may start any."""
    output_kib: int = 1024
    """Of standard output; standard error is cut at 64 KiB without failing the job."""
    disk_mib: int = 32
    """Of all files in the working directory (L3), of each file (L1)."""
    submission_s: float = 60.0
    """Seconds of wall time of all jobs of one submission, after which it has failed with outcome `wall`."""
    waiting_s: float = 0.0
    """Wall time besides, in which the job waits for another: a candidate for its tests."""

    @property
    def wall_s(self) -> float:
        """Seconds of wall time: max(3 x cpu_s, cpu_s + 2). Time in which a job was ready to run and had no core does
        not count, up to `longest_wall_s`, so that a loaded node changes no verdict."""
        return max(3 * self.cpu_s, self.cpu_s + 2) + self.waiting_s

    @property
    def longest_wall_s(self) -> float:
        """Seconds after which a job ends whatever the load: 5 x wall_s."""
        return 5 * self.wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the policy wrote, cut out of its completion."""

    source: str
    language: str = "python"
    """python, bash, cpp, javascript; the last three need L3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How claimed and expected outputs are compared (`compare.py`)."""

    tolerance: float = 0.0
    """Absolute and relative, for decimal numbers; 0: exact."""
    ignore_case: bool = False
    unordered_lines: bool = False
    """Lines of standard output, or the elements of the outermost list, may come in any order."""
    unwrap_expected: bool = False
    """Where a list of one element is expected from a call, its only element is right too: APPS wraps results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioCase:
    """One input and the output that is expected for it."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioTests:
    """The program runs once per case, each in a process of its own."""

    cases: tuple[StdioCase, ...]
    comparison: Comparison = Comparison()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """Arguments and the result that is expected. Plain data: see `codec.py`."""

    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTests:
    """One process per submission; each call's arguments are revealed after the reply before it was compared."""

    function: str
    """A module-level function, or a method of `class Solution`, a new instance per call."""
    cases: tuple[CallCase, ...]
    comparison: Comparison = Comparison()


class TesterStyle(StrEnum):
    """What test code looks like."""

    HUMANEVAL = "humaneval"
    """Defines `check(candidate)`."""
    ASSERTS = "asserts"
    """Statements, each of which raises if the candidate is wrong (MBPP)."""
    UNITTEST = "unittest"
    PYTEST = "pytest"


@dataclass(frozen=True, slots=True, kw_only=True)
class TesterTests:
    """Trusted test code. It runs in a slot of its own; the candidate's functions are proxies there."""

    style: TesterStyle
    source: str
    """For `asserts`: the statements are in `statements`, and this is the set-up before them."""
    statements: tuple[str, ...] = ()
    entry_point: str | None = None
    """Name of the candidate's function, where the tests name one (HumanEval)."""
    prelude: str = ""
    """Trusted source that runs before the tests: HumanEval's prompts define helpers that the tests call."""
    same_process: bool = False
    """Run tests and candidate in one process: Integrity.WEAK."""


TestSet = StdioTests | CallTests | TesterTests


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What a slot measured of one job. `stdout`, `stderr` and `result` are claims of the judged code."""

    outcome: Outcome
    exit_code: int
    """Exit status, or minus the signal's number."""
    cpu_s: float
    wall_s: float
    peak_rss_mib: float
    stdout: bytes
    stderr: bytes
    result: bytes = b""
    """What a tester wrote on its verdict pipe."""
    denied: Mapping[str, int] = field(default_factory=dict)
    """System calls that the sandbox denied, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One test of a submission."""

    outcome: Outcome
    cpu_s: float
    """0 for calls, which share one process: see the judgement's."""
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Signs of reward hacking in one submission. None of them changes the verdict by itself."""

    denied: Mapping[str, int] = field(default_factory=dict)
    """Denied system calls by name."""
    protocol_violations: int = 0
    canary_read: bool = False
    """Its output holds the secret of a file that looks like expected outputs, and that nothing needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one submission, made on the trusted side."""

    outcome: Outcome
    """ok only if every test passed; else the outcome of the first test that did not."""
    tests_passed: int
    tests_run: int
    """With early stop (the default), the tests up to the first that failed."""
    tests_total: int
    cases: tuple[CaseResult, ...] = ()
    cpu_s: float = 0.0
    wall_s: float = 0.0
    """Of its jobs; waiting in the queue does not count."""
    queue_s: float = 0.0
    peak_rss_mib: float = 0.0
    stdout: str = ""
    """The last job's, escaped and cut, for people."""
    stderr: str = ""
    detail: str = ""
    """Why it failed, in one line."""
    signals: Signals = Signals()
    level: Level | None = None
    """None: no slot ever ran it (infra_error)."""
    integrity: Integrity = Integrity.STRONG
    slot: str = ""

    @property
    def passed(self) -> bool:
        """Every test was run and passed."""
        return self.outcome is Outcome.OK
