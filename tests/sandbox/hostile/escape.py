"""Programs that try to reach other processes, namespaces and users. They pass only if the kernel let them in.

Most make system calls with harmless or broken arguments: what is refused answers EPERM, EACCES or ENOSYS; any other
answer says that the kernel looked at the arguments, so the call was not denied.
"""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, HostileProgram, attack

_REFUSED = frozenset({Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})


def _program(name: str, why: str, body: str, outcomes: frozenset[Outcome] = _REFUSED) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=attack(body), tests=DOUBLE, outcomes=outcomes)


OTHER_PROCESSES = (
    _program(
        "ptrace",
        "traces its parent, or lets itself be traced",
        "return any([reached('ptrace', request, os.getppid(), 0, 0) for request in (0, 16, 0x4206)])",
    ),
    _program(
        "memory_of_the_host",
        "reads and writes the slot host's memory",
        """
        import ctypes, struct
        buffer = ctypes.create_string_buffer(64)
        vector = struct.pack("PP", ctypes.addressof(buffer), 64)
        remote = struct.pack("PP", id(sys), 64)
        calls = ("process_vm_readv", "process_vm_writev")
        both = (os.getppid(), os.getpid())
        return any([reached(name, who, vector, 1, remote, 1, 0) for name in calls for who in both])
        """,
    ),
    _program(
        "memory_through_proc",
        "opens mem, maps, environ and cmdline of itself and of its parent",
        """
        names = ("mem", "maps", "environ", "cmdline", "stat", "status", "fd", "root/etc/passwd", "cwd/..", "task")
        def opened(path):
            try:
                os.close(os.open(path, os.O_RDONLY))
            except OSError:
                return False
            print(path, file=sys.stderr)
            return True
        everyone = ("self", "1", os.getppid(), "thread-self")
        found = [opened(f"/proc/{who}/{name}") for who in everyone for name in names]
        return any(found + [opened(f"/proc/{os.getppid()}/ns/{kind}") for kind in ("user", "mnt", "pid", "net")])
        """,
    ),
    _program(
        "signals_to_everyone",
        "asks whether it may signal every process, its group and its parent (signal 0 kills nobody)",
        """
        import signal
        targets = (-1, 0, 1, os.getppid(), -os.getpgrp())
        sent = [reached("kill", who, 0) for who in targets]
        sent.append(reached("tkill", os.getppid(), 0))
        sent.append(reached("tgkill", os.getppid(), os.getppid(), 0))
        sent.append(reached("rt_sigqueueinfo", os.getppid(), 0, bytes(128)))
        sent.append(reached("rt_tgsigqueueinfo", os.getppid(), os.getppid(), 0, bytes(128)))
        return any(sent)
        """,
    ),
    _program(
        "kills_the_host",
        "kills its parent",
        "os.kill(os.getppid(), 9)\nreturn True",
    ),
    _program(
        "stops_the_host",
        "stops its parent, by process and by group",
        """
        import signal
        parent = os.getppid()
        sent = [worked(os.kill, parent, signal.SIGSTOP), worked(os.killpg, os.getpgid(parent), signal.SIGSTOP)]
        return any(sent)
        """,
    ),
    _program(
        "signals_by_descriptor",
        "lets a descriptor's readiness signal its parent (F_SETOWN, FIOSETOWN)",
        """
        import fcntl, signal, socket, struct
        left, right = socket.socketpair()
        owned = []
        for target in (os.getppid(), -os.getppid(), 1):
            owned.append(worked(lambda: fcntl.fcntl(left, fcntl.F_SETOWN, target)))
            owned.append(worked(lambda: fcntl.fcntl(left, 15, struct.pack("ii", 1, target))))
            owned.append(worked(lambda: fcntl.ioctl(left, 0x8901, struct.pack("i", target))))
        worked(lambda: fcntl.fcntl(left, 10, signal.SIGKILL))
        worked(lambda: fcntl.fcntl(left, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK))
        right.send(b"now")
        return any(owned)
        """,
    ),
    _program(
        "process_descriptors",
        "takes descriptors and signals through a descriptor of its parent",
        """
        opened = call("pidfd_open", os.getppid(), 0)
        taken = [reached("pidfd_getfd", opened, number, 0) for number in range(3, 12)]
        sent = [reached("pidfd_send_signal", opened, 0, None, 0), reached("process_mrelease", opened, 0)]
        return opened >= 0 or any(taken) or any(sent)
        """,
    ),
    _program(
        "limits_of_the_host",
        "lowers its parent's limits",
        """
        import struct
        return any([call("prlimit64", os.getppid(), which, struct.pack("QQ", 0, 0), None) >= 0 for which in (6, 7, 9)])
        """,
    ),
    _program(
        "what_the_host_maps",
        "asks for addresses and pages of its parent",
        """
        import ctypes
        head, size = ctypes.c_void_p(), ctypes.c_size_t()
        parent = os.getppid()
        asked = [
            reached("get_robust_list", parent, ctypes.byref(head), ctypes.byref(size)) and bool(head.value),
            reached("move_pages", parent, 0, None, None, None, 0),
            reached("migrate_pages", parent, 0, None, None),
            reached("kcmp", os.getpid(), parent, 2, 0, 0),
            reached("process_madvise", -1, None, 0, 0, 0),
        ]
        return any(asked)
        """,
    ),
)

NAMESPACES = (
    _program(
        "unshare",
        "new namespaces of every kind",
        """
        kinds = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80, 0x200, 0)
        return any([reached("unshare", kind) for kind in kinds])
        """,
    ),
    _program(
        "clone_namespaces",
        "new namespaces by clone",
        """
        made = []
        for kind in (0x10000000, 0x20000, 0x40000000, 0x10020000):
            child = call("clone", kind | 17, 0, 0, 0, 0)
            if child == 0:
                os._exit(0)
            made.append(child > 0)
        return any(made)
        """,
    ),
    _program("setns", "enters other namespaces", "return any([reached('setns', fd, 0) for fd in (-1, 0, 3)])"),
    _program(
        "mount",
        "mounts, old and new",
        """
        tried = [
            reached("mount", b"none", b".", b"tmpfs", 0, None),
            reached("mount", b"/", b".", None, 4096, None),
            reached("mount", b"proc", b".", b"proc", 0, None),
            reached("mount", None, b"/", None, 32 | 4096, None),
            reached("umount2", b".", 2),
            reached("fsopen", b"tmpfs", 0),
            reached("fspick", -100, b".", 0),
            reached("open_tree", -100, b".", 1),
            reached("move_mount", -1, b"", -1, b"", 0),
            reached("mount_setattr", -100, b"/", 0, bytes(32), 32),
        ]
        return any(tried)
        """,
    ),
    _program(
        "roots",
        "another root folder",
        "return any([reached('chroot', b'.'), reached('pivot_root', b'.', b'.'), worked(os.chroot, '/')])",
    ),
    _program(
        "users",
        "another user, groups, capabilities",
        """
        import ctypes, struct
        before = os.getresuid()
        tried = []
        for user in {0, 1, 60_000, 65_534} - set(before):
            tried += [worked(os.setuid, user), worked(os.setresuid, user, user, user)]
            tried += [worked(os.setresgid, user, user, user)]
        tried.append(worked(os.setgroups, [0, 6]))
        header = struct.pack("Ii", 0x20080522, 0)
        tried.append(call("capset", header, struct.pack("6I", *[0xFFFFFFFF] * 6)) >= 0)
        return any(tried)
        """,
    ),
)

PROGRAMS = (*OTHER_PROCESSES, *NAMESPACES)
