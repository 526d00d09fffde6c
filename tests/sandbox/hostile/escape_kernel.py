"""Programs that try to leave through the kernel: rare system calls, machine code, the network, links and devices."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, HostileProgram, attack

_REFUSED = frozenset({Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})
_KILLED = _REFUSED | {Outcome.SIGNAL}


def _program(name: str, why: str, body: str, outcomes: frozenset[Outcome] = _REFUSED) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=attack(body), tests=DOUBLE, outcomes=outcomes)


KERNEL = (
    _program(
        "bpf",
        "loads programs into the kernel",
        "return reached('bpf', 0, None, 0) or reached('bpf', 5, bytes(120), 120)",
    ),
    _program(
        "keyrings",
        "keeps and reads keys",
        """
        tried = [
            reached("keyctl", 0, -3, 0, 0, 0),
            reached("keyctl", 11, -3, None, 0, 0),
            reached("add_key", b"user", b"funicular-left", b"x", 1, -4),
            reached("request_key", b"user", b"x", None, 0),
        ]
        return any(tried)
        """,
    ),
    _program("io_uring", "system calls that no filter sees", "return reached('io_uring_setup', 8, bytes(120))"),
    _program(
        "page_faults",
        "userfaultfd, which widens races in the kernel",
        "return any([reached('userfaultfd', flags) for flags in (0, 1, 0x80000)])",
    ),
    _program(
        "file_handles",
        "opens files by handle, past every folder",
        """
        import ctypes
        handle = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132))
        mount = ctypes.c_int()
        named = reached("name_to_handle_at", -100, b".", handle, ctypes.byref(mount), 0)
        return reached("open_by_handle_at", -100, handle, 0) or named
        """,
    ),
    _program(
        "performance_events",
        "reads performance counters",
        "return reached('perf_event_open', bytes(128), 0, -1, -1, 0)",
    ),
    _program(
        "administration",
        "calls of an administrator",
        """
        tried = [
            reached("fanotify_init", 0, 0), reached("quotactl", 0, None, 0, None), reached("swapon", None, 0),
            reached("reboot", 0, 0, 0, None), reached("kexec_load", 0, 0, None, -1),
            reached("init_module", None, 0, None),
            reached("finit_module", -1, b"", 0), reached("delete_module", None, 0), reached("acct", b"no"),
            reached("syslog", 3, None, 0), reached("sethostname", b"x", 1), reached("setdomainname", b"x", 1),
            reached("settimeofday", None, None), reached("clock_settime", 0, None), reached("clock_adjtime", 0, None),
        ]
        return any(tried)
        """,
    ),
    _program(
        "personality",
        "turns off random addresses, makes data executable",
        "return any([call('personality', flag) >= 0 for flag in (0x40000, 0x400000, 8)])",
    ),
    _program(
        "prctl",
        "undoes its confinement",
        """
        tried = [
            (4, 1), (38, 0), (36, 1), (8, 1), (24, 21), (47, 2, 21), (28, 0), (1, 0), (0x59616D61, -1),
            (35, 6, 1), (41, 1), (53, 0, 1), (59, 1, 0, 0, 0), (62, 1),
        ]
        return any([call("prctl", *(list(arguments) + [0] * (5 - len(arguments)))) >= 0 for arguments in tried])
        """,
    ),
    _program(
        "its_own_filter",
        "installs a filter that allows all, and one that reports to itself, then forks",
        """
        import ctypes, struct
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
        call("prctl", 22, 2, program, 0, 0)
        call("seccomp", 1, 0, program)
        listener = call("seccomp", 1, 8, program)
        try:
            child = os.fork()
        except OSError:
            child = -1
        if child == 0:
            os._exit(0)
        return listener >= 0 or child > 0
        """,
    ),
    _program(
        "its_own_landlock",
        "a wider ruleset of its own, then reads a file outside",
        """
        import struct
        call("landlock_create_ruleset", struct.pack("QQ", 1, 0), 8, 0)
        return worked(open, "/etc/passwd")
        """,
    ),
    _program(
        "terminals",
        "types into the terminal, opens devices",
        """
        import fcntl
        typed = [worked(fcntl.ioctl, fd, request, b"x") for fd in range(5) for request in (0x5412, 0x541C, 0x4B46)]
        names = ("tty", "ptmx", "console", "kmsg", "mem", "kvm", "fuse", "loop-control", "sda", "vda", "net/tun")
        return any(typed + [worked(os.open, f"/dev/{name}", os.O_RDWR) for name in names])
        """,
    ),
)

_MACHINE_CODE = """
import ctypes, mmap
if os.uname().machine != "x86_64":
    return False
block = mmap.mmap(-1, 4096, prot=7)
block.write(bytes.fromhex("{code}"))
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
result = ctypes.CFUNCTYPE(ctypes.c_long)(address)()
if result == 0 and {forks}:
    os._exit(0)
return {success}
"""

MACHINE_CODE = (
    _program(
        "system_calls_of_32_bits",
        "int 0x80 with the numbers of another architecture (getpid)",
        _MACHINE_CODE.format(code="b814000000cd80c3", forks=False, success="(result & 0xffffffff) == os.getpid()"),
        _KILLED,
    ),
    _program(
        "fork_of_32_bits",
        "int 0x80 with fork's number there",
        _MACHINE_CODE.format(code="b802000000cd8089c0c3", forks=True, success="0 < result < 1 << 31"),
        _KILLED,
    ),
    _program(
        "fork_in_machine_code",
        "a fork that no library sees",
        _MACHINE_CODE.format(code="b8390000000f05c3", forks=True, success="result > 0"),
        _KILLED,
    ),
    _program(
        "x32_numbers",
        "numbers of the x32 interface",
        "return any([call(0x40000000 + number) >= 0 for number in (39, 57)])",
        _KILLED,
    ),
)

NETWORK = (
    _program(
        "sockets",
        "sockets of every family",
        """
        import socket
        families = (1, 2, 10, 16, 17, 38, 40, 31, 9, 29, 44)
        def opened(*kind):
            try:
                socket.socket(*kind).close()
            except OSError:
                return False
            return True
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
        return any([opened(family, kind) for family in families for kind in kinds])
        """,
    ),
    _program(
        "network_by_library",
        "a web request, a name look-up",
        """
        import socket, urllib.request
        tried = [
            worked(lambda: urllib.request.urlopen("http://127.0.0.1:8265/", timeout=1)),
            worked(lambda: socket.create_connection(("127.0.0.1", 22), timeout=1)),
            worked(lambda: socket.getaddrinfo("localhost", 80)) and worked(lambda: socket.socket()),
        ]
        return any(tried)
        """,
    ),
    _program(
        "pair_that_is_redirected",
        "a socket pair, which is allowed, connected or sent to another process's socket",
        """
        import socket
        kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        targets = ("\\0funicular-bait", "/tmp/funicular-bait/socket", "/dev/log", "/run/systemd/journal/socket")
        tried = []
        for kind in kinds:
            for target in targets:
                left, right = socket.socketpair(socket.AF_UNIX, kind)
                tried.append(worked(left.connect, target))
                left, right = socket.socketpair(socket.AF_UNIX, kind)
                tried.append(worked(left.bind, "\\0funicular-left-socket"))
                if kind == socket.SOCK_DGRAM:
                    tried.append(worked(left.sendto, b"stolen", target))
                    tried.append(worked(left.sendmsg, [b"stolen"], [], 0, target))
        return any(tried)
        """,
    ),
    _program(
        "descriptors_sent_out",
        "opens a datagram pair and passes a listener through it",
        """
        import socket
        left, right = socket.socketpair()
        return worked(left.listen) or worked(left.accept)
        """,
    ),
)

FILES = (
    _program(
        "links_out",
        "symbolic links, hard links and .. out of its folder",
        """
        def read(path):
            with open(path, "rb") as f:
                return f.read(1)
        got = []
        for index, target in enumerate(("/etc/passwd", "/proc/self/environ", "../../../etc/passwd", "/etc/hostname")):
            if worked(os.symlink, target, f"link{index}"):
                got.append(worked(read, f"link{index}"))
            got.append(worked(os.link, target, f"hard{index}"))
        return any(got)
        """,
    ),
    _program(
        "moved_folder",
        "puts a link where its folder was, for whoever cleans it",
        """
        here = os.getcwd()
        parent, name = os.path.split(here)
        os.mkdir("victim")
        moved = [
            worked(os.rename, here, os.path.join(parent, "moved")),
            worked(os.rmdir, here),
            worked(os.symlink, "/tmp/funicular-bait", os.path.join(parent, name + "2")),
            worked(os.rename, "victim", os.path.join(parent, "victim")),
        ]
        return any(moved)
        """,
    ),
    _program(
        "devices",
        "device nodes of disks and memory",
        """
        import stat
        made = []
        devices = ((stat.S_IFBLK, (8, 0)), (stat.S_IFBLK, (254, 0)), (stat.S_IFCHR, (1, 1)))
        for index, (kind, number) in enumerate(devices):
            made.append(worked(os.mknod, f"device{index}", kind | 0o666, os.makedev(*number)))
        return any(made)
        """,
    ),
    _program(
        "programs_from_memory",
        "executes files, descriptors and its own interpreter",
        """
        tried = []
        for path in ("/bin/sh", sys.executable or "/usr/bin/python3", "/lib64/ld-linux-x86-64.so.2"):
            tried.append(worked(os.execve, path, [path, "-c", "print(42)"], {}))
        tried.append(call("execveat", 0, b"", None, None, 0x1000) >= 0)
        return any(tried)
        """,
    ),
    _program(
        "system_folders",
        "writes below /, /etc, /usr, /sys, /proc and /dev",
        """
        def write(path):
            with open(path, "wb"):
                pass
        folders = ("", "/etc", "/usr", "/usr/bin", "/usr/lib", "/sys", "/sys/fs/cgroup", "/dev", "/run", "/var")
        wrote = [worked(write, f"{folder}/funicular-left-file") for folder in folders]
        switches = ("sys/kernel/core_pattern", "self/oom_score_adj", "sysrq-trigger", "self/uid_map")
        wrote += [worked(write, f"/proc/{name}") for name in switches]
        return any(wrote)
        """,
    ),
)

PROGRAMS = (*KERNEL, *MACHINE_CODE, *NETWORK, *FILES)
