"""Filters: what they answer for each call, found by running their instructions, and that this kernel takes them."""

import errno
import os
import struct

import pytest

from funicular.rewards.sandbox.slot import kernel, policy, seccomp
from funicular.rewards.sandbox.slot.seccomp import ALLOW, KILL_PROCESS, NOTIFY, OWN_PID, deny
from funicular.rewards.sandbox.slot.syscalls import ARCHITECTURES, Architecture, this_machine
from funicular.rewards.sandbox.types import Level

_PID = 4321


class _Machine:
    """Runs a filter's instructions, as <linux/filter.h> defines them."""

    def __init__(self, rules: dict[str, seccomp.Rule], architecture: Architecture, default: int = NOTIFY) -> None:
        self._code = seccomp.assemble(rules, architecture, default)
        self._architecture = architecture

    def answer(self, call: str | int, *arguments: int, audit: int | None = None) -> int:
        number = self._architecture.numbers[call] if isinstance(call, str) else call
        words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
        masked = [word & 0xFFFFFFFFFFFFFFFF for word in words]
        data = struct.pack("IIQ6Q", number, self._architecture.audit if audit is None else audit, 0, *masked)
        at = accumulator = 0
        while True:
            code, true, false, operand = self._code[at]
            operand = _PID if operand == OWN_PID else operand
            at += 1
            if code == 0x20:
                (accumulator,) = struct.unpack_from("I", data, operand)
            elif code == 0x54:
                accumulator &= operand
            elif code == 0x06:
                return operand
            else:
                holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
                at += true if holds else false


def _python(level: Level = Level.L3, name: str = "x86_64") -> _Machine:
    return _Machine(policy.rules(level, native=False), ARCHITECTURES[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_call_is_answered_as_its_rule_says(name: str) -> None:
    rules = policy.rules(Level.L1, native=False)
    machine = _Machine(rules, ARCHITECTURES[name])

    for call in ARCHITECTURES[name].numbers:
        rule = rules.get(call, NOTIFY)
        if isinstance(rule, int):
            assert machine.answer(call) == rule, call


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dangerous_calls_are_announced_and_honest_probes_are_not(name: str) -> None:
    machine = _python(name=name)

    for call in ("ptrace", "socket", "connect", "execve", "mount", "bpf", "process_vm_readv", "memfd_create", "setns"):
        assert machine.answer(call) == NOTIFY, call
    assert machine.answer("clone3") == deny(errno.ENOSYS)
    assert machine.answer("io_uring_setup") == deny(errno.ENOSYS)
    assert machine.answer("sched_setaffinity") == deny(errno.EPERM)
    assert machine.answer("read") == ALLOW


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_and_the_32_bit_table_kill(name: str) -> None:
    machine = _python(name=name)

    assert machine.answer("read", audit=0x40000003) == KILL_PROCESS
    assert machine.answer(0x40000000) == KILL_PROCESS
    assert machine.answer(0xFFFFFFFF) == KILL_PROCESS


def test_calls_that_nobody_knows_do_not_exist() -> None:
    assert _python().answer(400) == deny(errno.ENOSYS)
    assert _python().answer(5000) == deny(errno.ENOSYS)


def test_threads_may_be_made_and_processes_may_not() -> None:
    machine = _python()

    assert machine.answer("clone", 0x003D0F00) == ALLOW
    assert machine.answer("clone", 17) == NOTIFY
    assert machine.answer("clone", 0x00010000 | 0x10000000) == NOTIFY


def test_native_programs_may_fork_but_not_into_namespaces() -> None:
    machine = _Machine(policy.rules(Level.L3, native=True), ARCHITECTURES["x86_64"])

    assert machine.answer("clone", 17) == ALLOW
    assert machine.answer("clone", 17 | 0x10000000) == NOTIFY
    assert machine.answer("clone", 17 | 0x00008000) == NOTIFY
    assert machine.answer("execve") == ALLOW
    assert machine.answer("socket", 1) == deny(errno.EACCES)
    assert machine.answer("socket", 2) == NOTIFY


def test_signals_reach_only_the_job_itself() -> None:
    machine = _python()

    assert machine.answer("kill", _PID, 15) == ALLOW
    assert machine.answer("tgkill", _PID, 7, 6) == ALLOW
    for pid in (0, 1, _PID + 1, -_PID, -1):
        assert machine.answer("kill", pid, 0) == NOTIFY, pid
    assert machine.answer("tkill", _PID, 9) == NOTIFY
    assert machine.answer("fcntl", 3, 8, 1) == deny(errno.EPERM)


def test_limits_of_others_cannot_be_changed() -> None:
    assert _python().answer("prlimit64", 0, 3, 4096, 0) == ALLOW
    assert _python().answer("prlimit64", 1, 3, 4096, 0) == NOTIFY


def test_sockets_only_in_pairs_and_without_addresses() -> None:
    machine = _python()

    assert machine.answer("socketpair", 1) == ALLOW
    assert machine.answer("socketpair", 2) == NOTIFY
    assert machine.answer("sendto", 3, 4096, 10, 0, 0) == ALLOW
    assert machine.answer("sendto", 3, 4096, 10, 0, 0x1000) == NOTIFY
    assert machine.answer("sendto", 3, 4096, 10, 0, 1 << 32) == NOTIFY


def test_files_cannot_be_cut_by_opening_them_for_reading() -> None:
    machine = _python()

    assert machine.answer("openat", -100, 4096, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    assert machine.answer("openat", -100, 4096, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == ALLOW
    assert machine.answer("openat", -100, 4096, os.O_RDONLY | os.O_TRUNC) == NOTIFY
    assert machine.answer("open", 4096, os.O_RDONLY | os.O_TRUNC) == NOTIFY
    assert machine.answer("open", 4096, 3 | os.O_TRUNC) == NOTIFY


def test_modes_and_times_of_files_can_be_changed_at_l3_only() -> None:
    assert _python(Level.L3).answer("fchmodat", -100, 4096, 0o777) == ALLOW
    assert _python(Level.L1).answer("fchmodat", -100, 4096, 0o777) == NOTIFY
    assert _python(Level.L1).answer("utimensat", -100, 4096) == deny(errno.EPERM)
    assert _python(Level.L1).answer("truncate", 4096, 0) == NOTIFY


def test_without_notifications_the_same_calls_are_denied() -> None:
    rules = policy.without_notifications(policy.rules(Level.L1, native=False))
    machine = _Machine(rules, ARCHITECTURES["x86_64"], deny(errno.EPERM))

    for call in ARCHITECTURES["x86_64"].numbers:
        assert machine.answer(call, 99, 99, 0x200, 99, 99) != NOTIFY, call
    assert machine.answer("socket") == deny(errno.EPERM)
    assert machine.answer("clone", 17) == deny(errno.EPERM)
    assert machine.answer("read") == ALLOW


@pytest.mark.parametrize("notify", [True, False])
def test_this_kernel_takes_the_filters(notify: bool) -> None:
    filters = policy.job_filter(this_machine(), Level.L1, native=False, notify=notify)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            filters.install(listener=False)
            policy.sealing_filter(this_machine()).install(listener=False)
            status = 0
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_numbers_are_those_of_this_kernel() -> None:
    numbers = this_machine().numbers

    assert kernel.syscall("getpid") == os.getpid()
    assert this_machine().name_of(numbers["socket"]) == "socket"
    assert this_machine().name_of(9999) == "syscall_9999"
