"""Landlock: which files a job may read and write. The second wall at L3, the first at L1."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from funicular.rewards.sandbox.slot import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << i for i in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << i for i in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
READ_WRITE = (
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE
)
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_NET_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1


def abi() -> int:
    """Version of the kernel's Landlock; 0: none, or not switched on."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def _handled(version: int) -> int:
    """Every file access that this version can restrict."""
    bits_known = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    return (1 << bits_known) - 1


def ruleset(rules: Iterable[tuple[str, int]]) -> int:
    """A descriptor for `restrict`: each path, and all below it, may be used as its bits say; nothing else may.

    Paths that do not exist are left out. TCP, signals to other processes and abstract sockets are denied where
    the kernel can.

    Raises:
        OSError: there is no Landlock, or it refused a rule.
    """
    version = abi()
    known = _handled(version)
    network = _NET_BIND_AND_CONNECT_TCP if version >= 4 else 0
    scope = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules_fd = kernel.syscall("landlock_create_ruleset", struct.pack("QQQ", known, network, scope), size, 0)
    for path, access in rules:
        try:
            path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            allowed = known & (access if stat.S_ISDIR(os.fstat(path_fd).st_mode) else access & _OF_FILES)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, path_fd), 12)
            kernel.syscall("landlock_add_rule", rules_fd, _RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(path_fd)
    return rules_fd


def restrict(rules_fd: int) -> None:
    """Confine this process for good; it must have no_new_privs.

    Raises:
        OSError: the kernel refused.
    """
    kernel.syscall("landlock_restrict_self", rules_fd, 0)
