"""The system calls that Python does not wrap, through ctypes: the C library's own or by number."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

from funicular.rewards.sandbox.slot.syscalls import this_machine

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
SIGKILL = 9

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NUMBERS = this_machine().numbers


def checked(result: int, what: str) -> int:
    """The result of a C call.

    Raises:
        OSError: it was negative; `filename` says what was tried.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(name: str, *arguments: Any) -> int:
    """Make a system call by its name; integers are passed as 64-bit words, bytes by address.

    Raises:
        OSError: it failed.
    """
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *words), name)


def prctl(option: int, *arguments: int) -> int:
    """Change something of this process; unused arguments are 0.

    Raises:
        OSError: it failed.
    """
    words = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return checked(_libc.prctl(ctypes.c_int(option), *words), f"prctl({option})")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones.

    Raises:
        OSError: the kernel, or whoever confines us, does not allow it.
    """
    checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount, bind or remount.

    Raises:
        OSError: it failed.
    """
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    checked(result, f"mount {kind or source or ''} on {target}")


def bind_read_only(source: str, target: str, *, devices: bool = False) -> None:
    """Show `source`, with all that is mounted below it, at `target`, read-only.

    Raises:
        OSError: it failed; mount_setattr needs Linux 5.12.
    """
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | (0 if devices else _MOUNT_ATTR_NODEV)
    words = struct.pack("QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, words, len(words))


def unmount(target: str) -> None:
    """Detach a mount.

    Raises:
        OSError: it failed.
    """
    checked(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def set_host_name(name: bytes) -> None:
    """Of this UTS namespace.

    Raises:
        OSError: it failed.
    """
    syscall("sethostname", name, len(name))


def enter_root(folder: str) -> None:
    """Make `folder`, a mount point, the root, and detach the old root.

    Raises:
        OSError: it failed.
    """
    os.chdir(folder)
    syscall("pivot_root", b".", b".")
    unmount(".")
    os.chdir("/")


def drop_bounding_set() -> None:
    """No program that is executed later can gain a capability. Does nothing without CAP_SETPCAP."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL beyond the kernel's last; EPERM: nothing to drop it with, and nothing in it to use
            return


_NO_CAPABILITIES = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)


def drop_capabilities() -> None:
    """Give up every capability: effective, permitted, inheritable, and with these the ambient ones.

    Raises:
        OSError: it failed.
    """
    syscall("capset", *_NO_CAPABILITIES)
