"""What the sandbox costs: `PYTHONPATH=. python tests/bench/sandbox.py [JOBS]`.

CPU seconds are those of every process that takes part: the owner's, the slot's, the job's. Jobs per second and core
are 1 / CPU seconds per job, which another load on the machine changes little; jobs per second of wall time are printed
beside it, and mean something on an idle machine only.
"""

from __future__ import annotations

import io
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import FunctionRunner
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.sandbox import Sandbox
from funicular.rewards.sandbox.types import (
    CallCase,
    CallTests,
    Level,
    Limits,
    Program,
    StdioCase,
    StdioTests,
    TesterStyle,
    TesterTests,
)
from funicular.rewards.types import Task
from tests.bench.math_answers import PAIRS

_TICKS = os.sysconf("SC_CLK_TCK")
SOURCE = "a, b = map(int, input().split())\nprint(a + b)\n"
STDIN, STDOUT = "3 4\n", "7\n"
TINY = StdioTests(cases=(StdioCase(stdin=STDIN, stdout=STDOUT),))
CALLED = Program(source="def solve(a, b):\n    return a + b\n")
CALLS = 5_000
ASSERTS = TesterTests(
    style=TesterStyle.ASSERTS,
    source="",
    statements=("assert solve(1, 2) == 3", "assert solve(5, 7) == 12", "assert solve(0, 0) == 0"),
)
MATH_ANSWERS = ("1/2", r"so the answer is $\frac{2}{4}$", r"\boxed{0.5}", r"$x = 1/2$", r"is $\frac{3}{4}$ in the end")
LAYERS = ("none", "rlimits", "landlock", "seccomp", "all three", "namespaces", "namespaces and all three")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one thing done `times` times."""

    times: int
    wall_s: float
    cpu_s: float

    def line(self, name: str, unit: str = "job") -> str:
        """One row of the table."""
        cpu_ms, wall_ms = 1e3 * self.cpu_s / self.times, 1e3 * self.wall_s / self.times
        return (
            f"  {name:<44}{cpu_ms:9.2f} ms CPU {wall_ms:9.2f} ms wall {self.times / self.cpu_s:9.1f} {unit}s/s "
            f"per core {self.times / self.wall_s:9.1f} in wall time"
        )


def measure(work: Callable[[], object], times: int) -> Cost:
    """Call `work` `times` times after one call to warm up. Slots that it uses must have been started before."""
    work()
    cpu, began = _cpu_s(), time.perf_counter()
    for _ in range(times):
        work()
    return Cost(times=times, wall_s=time.perf_counter() - began, cpu_s=_cpu_s() - cpu)


def _cpu_s() -> float:
    """CPU seconds of this process, of all below it, and of those below it that have ended and were waited for."""
    parents: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
            seconds[int(entry)] = sum(map(int, fields[11:15])) / _TICKS
    total, todo = 0.0, [os.getpid()]
    while todo:
        process = todo.pop()
        total += seconds[process]
        todo += parents.get(process, [])
    return total


def main(jobs: int) -> None:
    """Print everything."""
    _print_machine(jobs)
    sandboxes = {level: opened for level in Level if (opened := _open(level)) is not None}
    try:
        _tiny_jobs(sandboxes, jobs)
        for level, sandbox in sandboxes.items():
            _other_modes(level, sandbox, jobs)
    finally:
        for sandbox in sandboxes.values():
            sandbox.close()
    _layers(jobs)
    _math_verify(max(20, jobs // 10))


def _print_machine(jobs: int) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    print(f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    print(f"load {os.getloadavg()[0]:.1f} at the start; {jobs} jobs of each kind")
    print(f"$ {shlex.join([sys.executable, *sys.argv])}\n")


def _open(level: Level) -> Sandbox | None:
    try:
        return Sandbox(SandboxConfig(isolation=level.value, min_level=level.value, slots=1))
    except IsolationUnavailable as error:
        print(f"{level} is not measured: {error}")
        return None


def _tiny_jobs(sandboxes: dict[Level, Sandbox], jobs: int) -> None:
    print("tiny stdio jobs (a program that adds two numbers, one test)")
    costs = {}
    for level, sandbox in sandboxes.items():
        costs[level] = measure(
            lambda sandbox=sandbox: _expect(sandbox.judge(Program(source=SOURCE), TINY).passed), jobs
        )
        print(costs[level].line(f"sandbox, {level}, numpy loaded"))
    with tempfile.TemporaryDirectory() as folder:
        plain, with_numpy = Path(folder, "plain.py"), Path(folder, "numpy.py")
        plain.write_text(SOURCE)
        with_numpy.write_text("import numpy\n" + SOURCE)
        fresh = measure(lambda: _fresh("-I", "-S", str(plain)), max(10, jobs // 5))
        print(fresh.line("(a) a fresh python -I -S"))
        fresh_numpy = measure(lambda: _fresh("-I", str(with_numpy)), max(5, jobs // 50))
        print(fresh_numpy.line("(a2) a fresh python that imports numpy"))
    guard = measure(_in_process, jobs * 5)
    print(guard.line("(b) exec in this process, no isolation"))
    for level, cost in costs.items():
        each, numpy_each = cost.cpu_s / cost.times, fresh_numpy.cpu_s / fresh_numpy.times
        print(f"  {level}: {numpy_each / each:.1f} times a fresh interpreter with numpy (target 5), ", end="")
        print(f"{fresh.cpu_s / fresh.times / each:.1f} times one without; {1 / each:.0f} jobs/s per core (target 100)")
    print()


def _fresh(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], input=STDIN, capture_output=True, text=True, check=True)
    _expect(done.stdout == STDOUT)


def _in_process() -> None:
    written, stdin = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(STDIN)
    try:
        with redirect_stdout(written):
            exec(compile(SOURCE, "main.py", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdin = stdin
    _expect(written.getvalue() == STDOUT)


def _other_modes(level: Level, sandbox: Sandbox, jobs: int) -> None:
    cases = tuple(CallCase(arguments=(n, 1), expected=n + 1) for n in range(CALLS))
    tests, limits = CallTests(function="solve", cases=cases), Limits(cpu_s=60.0)
    called = measure(lambda: _expect(sandbox.judge(CALLED, tests, limits=limits).passed), 3)
    each = Cost(times=called.times * CALLS, wall_s=called.wall_s, cpu_s=called.cpu_s)
    print(each.line(f"call mode, {level}, {CALLS} tests in one job", "test") + " (target 5000)")
    split = measure(lambda: _expect(sandbox.judge(CALLED, ASSERTS).passed), max(10, jobs // 4))
    print(split.line(f"split mode, {level}, 3 assertions", "submission"))


def _layers(jobs: int) -> None:
    print("\nlayers: a warm interpreter with numpy that forks a tiny job, with nothing of the service around it")
    script = Path(__file__).with_name("sandbox_layers.py")
    first = 0.0
    for layer in LAYERS:
        done = subprocess.run([sys.executable, str(script), layer, str(jobs)], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"  {layer:<44} not measured: {reason}")
            continue
        wall_s, cpu_s = map(float, done.stdout.split())
        cost = Cost(times=jobs, wall_s=wall_s, cpu_s=cpu_s)
        first = first or cost.cpu_s / jobs
        print(cost.line(layer) + f"   {1e3 * (cost.cpu_s / jobs - first):+.2f} ms CPU")


def _math_verify(calls: int) -> None:
    print("\nmath-verify, loaded and warmed, and one trivial function, in one fork (target 30 ms CPU)")
    runner = FunctionRunner(RewardConfig(verifier="math"), Path())
    try:
        runner.start()
        print("  answers to 1/2, a group of one; the first text needs no sympy")
        for text in MATH_ANSWERS:
            print(_scored(runner, "1/2", [text], calls).line(text, "call"))
        costs = [_scored(runner, reference, [text], max(5, calls // 5)) for reference, text in PAIRS]
        each = sorted(1e3 * cost.cpu_s / cost.times for cost in costs)
        print(f"  {len(each)} other pairs, groups of one: median {median(each):.1f}, ", end="")
        print(f"mean {fmean(each):.1f}, 9 of 10 below {each[len(each) * 9 // 10]:.1f}, at most {each[-1]:.1f} ms CPU")
        texts = [text for _, text in PAIRS] * 2
        eights = [_scored(runner, PAIRS[i][0], texts[i : i + 8], 5) for i in range(len(PAIRS))]
        eight = fmean(cost.cpu_s / cost.times / 8 for cost in eights)
        print(f"  groups of eight different texts: {1e3 * eight:.1f} ms CPU a text in the mean")
    finally:
        runner.close()


def _scored(runner: FunctionRunner, reference: str, texts: list[str], calls: int) -> Cost:
    task = Task(task_id="t", prompt="p", answer=reference, verifier="math")
    return measure(lambda: runner.score(task, texts, [[1]] * len(texts)), calls)


def _expect(held: bool) -> None:
    if not held:
        raise SystemExit("a job of the benchmark did not pass: nothing that follows would mean anything")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
