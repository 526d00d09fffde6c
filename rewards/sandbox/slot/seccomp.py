"""A seccomp filter from a table of rules: assembling it, installing it, and answering its notifications.

The filter is a binary search over the system call's number. That is not for the calls' sake, whose results the
kernel caches by number, but for the installation's: the kernel fills that cache by running the filter once for
every number, and each job installs a filter of its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence

from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.slot.syscalls import X32_BIT, Architecture

KILL_PROCESS = 0x80000000
NOTIFY = 0x7FC00000
ALLOW = 0x7FFF0000
OWN_PID = 0x5AFE51D0
"""In a rule: the process that installs the filter; `Filter.install` puts the number in."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""
Rule = int | tuple[Instruction, ...]
"""What a filter returns for a call, or the instructions that find out from its arguments."""

_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _AUDIT_AT, _ARGUMENTS_AT = 0, 4, 16
_SET_MODE_FILTER, _FLAG_NEW_LISTENER = 1, 8
_NOTIFICATION = struct.Struct("QIIiI")
"""Id, pid, flags, number, architecture; the instruction pointer and six arguments follow."""
_NOTIFICATION_BYTES = 80
_ANSWER = struct.Struct("QqiI")
_IOCTL_RECEIVE, _IOCTL_SEND = 0xC0502100, 0xC0182101


def deny(number: int) -> int:
    """The call fails with this errno, and nobody is told."""
    return 0x00050000 | number


def _word(argument: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument + (4 if high else 0))


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def one_of(argument: int, values: Sequence[int], otherwise: int, *, then: int = ALLOW) -> Rule:
    """Allow the call, or do `then`, if the 32-bit argument is one of `values`."""
    tests = tuple((_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values))
    return (_word(argument), *tests, _return(otherwise), _return(then))


def null(argument: int, otherwise: int) -> Rule:
    """Allow the call if the pointer is null."""
    return (
        _word(argument),
        (_JUMP_EQUAL, 0, 2, 0),
        _word(argument, high=True),
        (_JUMP_EQUAL, 1, 0, 0),
        _return(otherwise),
        _return(ALLOW),
    )


def bits(argument: int, *, needed: int, forbidden: int, otherwise: int) -> Rule:
    """Allow the call if the 32-bit argument has one of the bits `needed` (unless 0) and none of `forbidden`."""
    need = ((_JUMP_ANY_BIT, 1, 0, needed),) if needed else ((_JUMP_ANY_BIT, 1, 1, 0),)
    return (_word(argument), (_JUMP_ANY_BIT, 1, 0, forbidden), *need, _return(otherwise), _return(ALLOW))


def without_flags(argument: int, flags: int, refusal: int, rule: Rule) -> Rule:
    """`refusal` if the 32-bit argument has one of `flags`, else what `rule` says."""
    rest = (_return(rule),) if isinstance(rule, int) else rule
    return (_word(argument), (_JUMP_ANY_BIT, 0, 1, flags), _return(refusal), *rest)


def masked_not(argument: int, mask: int, values: Sequence[int], otherwise: int) -> Rule:
    """Allow the call unless the 32-bit argument, masked, is one of `values`."""
    tests = tuple((_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values))
    return (_word(argument), (_AND, 0, 0, mask), *tests, _return(ALLOW), _return(otherwise))


def _search(segments: Sequence[tuple[int, Rule]]) -> list[Instruction]:
    """Instructions that find the segment of a number; segments start at their first number, in order."""
    if len(segments) == 1:
        rule = segments[0][1]
        return [_return(rule)] if isinstance(rule, int) else list(rule)
    middle = len(segments) // 2
    below, above = _search(segments[:middle]), _search(segments[middle:])
    if len(below) > 255:
        raise ValueError(f"a jump over {len(below)} instructions; a seccomp filter's longest is 255")
    return [(_JUMP_AT_LEAST, len(below), 0, segments[middle][0]), *below, *above]


def assemble(rules: Mapping[str, Rule], machine: Architecture, default: int) -> list[Instruction]:
    """The filter: a rule per system call, `default` for those without, ENOSYS for numbers that nobody knows.

    Calls of another architecture, or of x86_64's 32-bit table, kill the process.
    """
    by_number = {number: rules.get(name, default) for name, number in machine.numbers.items()}
    segments: list[tuple[int, Rule]] = []
    for number in range(max(by_number) + 2):
        rule = by_number.get(number, deny(errno.ENOSYS))
        if not segments or segments[-1][1] != rule:
            segments.append((number, rule))
    segments.append((X32_BIT, KILL_PROCESS))
    check = [(_LOAD, 0, 0, _AUDIT_AT), (_JUMP_EQUAL, 1, 0, machine.audit), _return(KILL_PROCESS)]
    return [*check, (_LOAD, 0, 0, _NUMBER_AT), *_search(segments)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """An assembled filter, ready to be installed by any process that forks from us."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self._pids = [8 * i + 4 for i, instruction in enumerate(instructions) if instruction[3] == OWN_PID]
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(instructions), ctypes.addressof(self._code))

    def install(self, *, listener: bool) -> int:
        """Confine this process for good; it must have no_new_privs.

        Args:
            listener: return the descriptor on which the denied calls are announced.

        Raises:
            OSError: the kernel refused.
        """
        for offset in self._pids:
            struct.pack_into("I", self._code, offset, os.getpid())
        flags = _FLAG_NEW_LISTENER if listener else 0
        return kernel.syscall("seccomp", _SET_MODE_FILTER, flags, ctypes.byref(self._program))


def refuse_next(listener: int) -> int | None:
    """Answer one announced call with EPERM.

    Returns:
        Its number, or None: the caller is gone.

    Raises:
        OSError: `listener` is no listener.
    """
    notification = bytearray(_NOTIFICATION_BYTES)
    try:
        fcntl.ioctl(listener, _IOCTL_RECEIVE, notification)
        identity, _, _, number, _ = _NOTIFICATION.unpack_from(notification)
        fcntl.ioctl(listener, _IOCTL_SEND, _ANSWER.pack(identity, 0, -errno.EPERM, 0))
    except FileNotFoundError:
        return None
    return number


def can_notify() -> bool:
    """Whether a filter here can announce calls: the kernel must know how, and no outer filter may do it already.

    Found out in a process of its own, since a filter is for good. Needs no_new_privs.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Filter([_return(ALLOW)]).install(listener=True)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
