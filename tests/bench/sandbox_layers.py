"""One layer of isolation around forked jobs: `python tests/bench/sandbox_layers.py LAYER JOBS` (see `sandbox.py`).

Prints wall seconds and CPU seconds of all jobs. Only the layer is measured, and what it takes to fork a warm
interpreter with numpy, run a tiny program on pipes and read its output.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time

from funicular.rewards.sandbox.slot import kernel, landlock, namespaces, policy
from funicular.rewards.sandbox.slot.runtime import program
from funicular.rewards.sandbox.slot.syscalls import this_machine
from funicular.rewards.sandbox.types import Level

SOURCE = b"a, b = map(int, input().split())\nprint(a + b)\n"
_STDIN, _STDOUT = b"3 4\n", b"7\n"
RLIMITS = {
    resource.RLIMIT_CPU: 10,
    resource.RLIMIT_AS: 4 << 30,
    resource.RLIMIT_DATA: 4 << 30,
    resource.RLIMIT_FSIZE: 32 << 20,
    resource.RLIMIT_NOFILE: 64,
    resource.RLIMIT_NPROC: 64,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}
"""As slots set them."""


class Layers:
    """What jobs do to themselves before they run; prepared once."""

    def __init__(self, name: str) -> None:
        every = name.endswith("all three")
        if name.startswith("namespaces"):
            namespaces.enter_user_namespace(0)
            namespaces.enter_other_namespaces()
        self._limits = RLIMITS if every or name == "rlimits" else {}
        readable = ["/usr", "/lib", "/lib64", sys.base_prefix, *filter(None, sys.path)]
        self._rules = (
            landlock.ruleset([(path, landlock.READ) for path in readable]) if every or name == "landlock" else None
        )
        self._filter = (
            policy.job_filter(this_machine(), Level.L1, native=False, notify=False)
            if every or name == "seccomp"
            else None
        )

    def apply(self) -> None:
        """In a fork."""
        for which, value in self._limits.items():
            resource.setrlimit(which, (value, value))
        if self._rules is not None or self._filter is not None:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if self._rules is not None:
            landlock.restrict(self._rules)
        if self._filter is not None:
            self._filter.install(listener=False)


def run_job(layers: Layers) -> None:
    """Fork a job, and check what it says."""
    stdin, stdin_w = os.pipe()
    stdout, stdout_w = os.pipe()
    os.write(stdin_w, _STDIN)
    os.close(stdin_w)
    pid = os.fork()
    if pid == 0:
        os.dup2(stdin, 0)
        os.dup2(stdout_w, 1)
        layers.apply()
        program.run_program(SOURCE)
    os.close(stdin)
    os.close(stdout_w)
    written = os.read(stdout, 100)
    os.close(stdout)
    _, status = os.waitpid(pid, 0)
    if status or written != _STDOUT:
        sys.exit(f"a job ended with {os.waitstatus_to_exitcode(status)} and said {written!r}")


def main(name: str, jobs: int) -> None:
    """Run the jobs; in a process of their own, since namespaces are entered for good."""
    layers = Layers(name)
    inside = os.fork()  # the first process of a new pid namespace
    if inside:
        _, status = os.waitpid(inside, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    gc.collect()
    gc.freeze()
    run_job(layers)
    used, began = _cpu_s(), time.perf_counter()
    for _ in range(jobs):
        run_job(layers)
    print(time.perf_counter() - began, _cpu_s() - used, flush=True)
    os._exit(0)


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
