"""Small attacks, each of which must fail in a slot. A slot that lets one through serves nothing.

They must do no harm where a wall is missing: they write only to a file and a folder made for it (OUTSIDE_FILE,
OUTSIDE_FOLDER), signal nobody but with signal 0, and make system calls with arguments that no kernel accepts.

A program prints a line that starts with THROUGH for whatever it reached, and TRIED when it has tried everything: an
attack that did not run proves nothing. In the sources, names in capitals are replaced: see `self_test.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from funicular.rewards.sandbox.types import Limits, Outcome

THROUGH, TRIED = "through:", "tried"
_MIB = 1 << 20
_SMALL = Limits(cpu_s=5.0, memory_mib=256, processes=8, output_kib=64, disk_mib=2)

_STARVED = Outcome.WALL
"""On a node so busy that wall time runs out first, nothing got through either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One attack."""

    name: str
    source: str
    limits: Limits = _SMALL
    outcomes: frozenset[Outcome] = frozenset({Outcome.OK})
    """What its job may end with; unless it is only OK, it need not say TRIED."""
    own_user_only: bool = False
    """Holds only where jobs have a user id of their own."""


def _killed(*outcomes: Outcome) -> frozenset[Outcome]:
    return frozenset(outcomes)


_PRELUDE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = SYSTEM_CALLS
def call(name, *arguments):
    return libc.syscall(NUMBERS[name], *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
def refused(what, attempt):
    try:
        got = attempt()
    except (OSError, ValueError):
        return
    if got != -1:
        print("through:", what, repr(got)[:80])
def not_there(name, *arguments):
    got = call(name, *arguments)
    if got != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("through:", name, got, errno.errorcode.get(ctypes.get_errno()))
"""

_PYTHON = {
    "environment": """
known = {"LANG", "LC_CTYPE", "HOME", "TMPDIR", "PATH"}
for name in set(os.environ) - known:
    print("through: variable", name)
""",
    "reading other files": """
for path in (OUTSIDE_FILE, "/etc/passwd", "/etc/hostname", OUTSIDE_FOLDER, "/home", "/var", "/sys/kernel"):
    refused("read " + path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read())
""",
    "writing other files": """
refused("write", lambda: open(OUTSIDE_FILE, "a").write("x"))
refused("cut", lambda: os.truncate(OUTSIDE_FILE, 0))
refused("cut by opening", lambda: os.open(OUTSIDE_FILE, os.O_RDONLY | os.O_TRUNC))
refused("create", lambda: os.open(OUTSIDE_FOLDER + "/new", os.O_WRONLY | os.O_CREAT))
refused("create a folder", lambda: os.mkdir(OUTSIDE_FOLDER + "/folder"))
refused("link", lambda: os.link(OUTSIDE_FILE, "linked"))
refused("rename", lambda: os.rename(OUTSIDE_FILE, OUTSIDE_FOLDER + "/renamed"))
refused("remove", lambda: os.unlink(OUTSIDE_FILE))
for folder in ("/", "/usr", "/tests", "/dev/shm", "/var/tmp", "/etc", sys.prefix):
    refused("a file without a name in " + folder, lambda: os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
for path in ("/usr/bin/true", os.__file__, "/tests/expected_output.json", "../tests/expected_output.json"):
    refused("open for writing " + path, lambda: os.open(path, os.O_WRONLY))
""",
    "attributes of other files": """
refused("chmod", lambda: os.chmod(OUTSIDE_FILE, 0o777))
refused("utime", lambda: os.utime(OUTSIDE_FILE, (0, 0)))
refused("chown", lambda: os.chown(OUTSIDE_FILE, os.getuid(), os.getgid()))
refused("setxattr", lambda: os.setxattr(OUTSIDE_FILE, "user.x", b"x"))
""",
    "other processes' memory": """
for path in ("/proc", "/proc/self", "/proc/self/maps", "/proc/1/environ", "/proc/%d/mem" % os.getppid()):
    refused(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(100))
refused("own memory", lambda: open("/proc/self/mem", "r+b"))
for pid in {os.getppid(), OWNER_PID} - {os.getpid()}:
    for number in range(20):
        refused("descriptor", lambda: os.open("/proc/%d/fd/%d" % (pid, number), os.O_RDONLY))
    refused("program", lambda: os.readlink("/proc/%d/exe" % pid))
    refused("folder", lambda: os.listdir("/proc/%d/cwd" % pid))
    not_there("process_vm_readv", pid, 0, 0, 0, 0, 0)
    not_there("process_vm_writev", pid, 0, 0, 0, 0, 0)
    not_there("pidfd_open", pid, 0)
    not_there("prlimit64", pid, 0, None, None)
not_there("ptrace", 0x4206, os.getppid(), 0, 0)
not_there("pidfd_getfd", 1, 1, 1)
""",
    "signals to others": """
import fcntl, socket
for pid in {1, os.getppid(), OWNER_PID, 0} - {os.getpid()}:
    refused("kill %d" % pid, lambda: os.kill(pid, 0))
    refused("tkill %d" % pid, lambda: call("tkill", pid, 0))
    refused("tgkill %d" % pid, lambda: call("tgkill", pid, pid, 0))
one, other = socket.socketpair()
refused("F_SETOWN", lambda: fcntl.fcntl(one, fcntl.F_SETOWN, os.getpid()))
refused("F_SETSIG", lambda: fcntl.fcntl(one, 10, 0))
""",
    "network": """
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
    refused("socket %d" % family, lambda: socket.socket(family, socket.SOCK_DGRAM))
for name in ("connect", "bind", "sendmsg", "recvmsg", "sendmmsg", "accept4"):
    not_there(name, 1, 1, 1, 1)
not_there("socketpair", 2, 1, 0, 1)
not_there("sendto", 1, 1, 0, 0, 1, 1)
""",
    "new processes": """
refused("fork", os.fork)
refused("vfork", lambda: os.posix_spawn("/usr/bin/true", ["true"], {}))
not_there("clone", 0x10010000, 0, 0, 0, 0)
not_there("clone3", 1, 1)
not_there("execveat", -1, 1, 0, 0, 0)
sys.stdout.flush()
refused("exec", lambda: os.execv("/usr/bin/true", ["true"]))
""",
    "what the kernel offers to few": """
for name in ("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "bpf", "perf_event_open", "userfaultfd",
             "keyctl", "add_key", "io_uring_setup", "fsopen", "open_tree", "init_module", "kexec_load", "reboot",
             "memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open", "name_to_handle_at",
             "open_by_handle_at", "personality", "quotactl", "acct", "swapon", "fanotify_init", "openat2",
             "landlock_create_ruleset", "seccomp", "settimeofday", "sethostname", "mknodat", "sched_setaffinity"):
    not_there(name, 1, 1, 1, 1, 1, 1)
for option, value in ((1, 0), (4, 1), (8, 1), (22, 1), (28, 0), (38, 0), (47, 0)):
    refused("prctl %d" % option, lambda: libc.prctl(option, value, 0, 0, 0))
""",
    "privileges": """
import struct
header, data = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0)), ctypes.create_string_buffer(24)
if call("capget", header, data) == 0 and any(data.raw):
    print("through: capabilities", data.raw.hex())
if os.getuid() != 0:
    refused("setuid", lambda: os.setuid(0))
not_there("setgroups", 1, 1)
not_there("capset", 1, 1)
""",
    "open descriptors": """
for fd in range(3, 2048):
    refused("descriptor %d" % fd, lambda: os.fstat(fd))
""",
}

_X86_64_ONLY = {"the 32-bit system call table": "call_number = 0x40000000 | 39\nlibc.syscall(call_number)\n"}

_PYTHON_KILLED = (
    Canary(name="memory", source="x = bytearray(1 << 32)", outcomes=_killed(Outcome.MEMORY)),
    Canary(
        name="processor time",
        source="while True: pass",
        limits=Limits(cpu_s=0.1),
        outcomes=_killed(Outcome.CPU, _STARVED),
    ),
    Canary(name="output", source="print('x' * (1 << 20))", outcomes=_killed(Outcome.OUTPUT)),
    Canary(
        name="a large file",
        source="open('large', 'wb').write(bytes(1 << 24))",
        outcomes=_killed(Outcome.OUTPUT),
    ),
    Canary(
        name="threads",
        source="import threading, time\nfor i in range(60): threading.Thread(target=time.sleep, args=(0.4,)).start()",
        outcomes=_killed(Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN),
    ),
)

_PERSISTENCE = (
    Canary(
        name="leaving files",
        source="""
import os
os.makedirs("deep/deeper")
open("left", "w").write("x"); open("deep/deeper/left", "w").write("x"); os.symlink("/", "deep/root")
print("tried")
""",
    ),
    Canary(
        name="files of the last job",
        source="""
import os
for folder in (".", os.environ["TMPDIR"]):
    for name in os.listdir(folder):
        print("through:", folder, name)
print("tried")
""",
    ),
)

_OWN_USER = Canary(
    name="user",
    source="import os\nif os.getuid() == 0 or os.getgid() == 0: print('through: root')\nprint('tried')",
    own_user_only=True,
)


def python_canaries(machine: str) -> list[Canary]:
    """Of a slot that runs Python."""
    canaries = [Canary(name=name, source=f"{_PRELUDE}{source}print('tried')\n") for name, source in _PYTHON.items()]
    if machine == "x86_64":
        canaries += [
            Canary(name=name, source=_PRELUDE + source, outcomes=_killed(Outcome.FORBIDDEN))
            for name, source in _X86_64_ONLY.items()
        ]
    return [*canaries, _OWN_USER, *_PYTHON_KILLED, *_PERSISTENCE]


_BASH = {
    "environment": """
for name in $(compgen -e); do
    case $name in LANG|LC_CTYPE|HOME|TMPDIR|PATH|PWD|OLDPWD|SHLVL|_|SHELL) ;; *) echo "through: variable $name" ;; esac
done
""",
    "reading other files": """
for path in OUTSIDE_FILE /etc/passwd /proc/self/status /proc/1/environ /etc/hostname; do
    if read -r line 2>/dev/null < "$path"; then echo "through: read $path"; fi
done
for path in /build/*; do
    if [ -e "$path" ]; then echo "through: $path"; fi
done
""",
    "writing other files": """
for path in OUTSIDE_FILE OUTSIDE_FOLDER/new; do
    if { echo x >> "$path"; } 2>/dev/null; then echo "through: write $path"; fi
done
for path in / /usr /usr/bin/true /dev/shm /var/tmp /tests /tests/expected_output.json /build; do
    if [ -w "$path" ]; then echo "through: may write $path"; fi
done
""",
    "network": """
for path in /dev/tcp/127.0.0.1/9 /dev/udp/127.0.0.1/9; do
    if { : > "$path"; } 2>/dev/null; then echo "through: $path"; fi
done
""",
    "open descriptors": """
for fd in 3 4 5 6 7 8 9; do
    if { : <&$fd; } 2>/dev/null; then echo "through: descriptor $fd"; fi
done
""",
    "namespaces": """
if [ -x /usr/bin/unshare ] && /usr/bin/unshare -Ur true 2>/dev/null; then echo "through: unshare"; fi
""",
    "signals to others": """
if [ OWNER_PID != $$ ] && kill -0 OWNER_PID 2>/dev/null; then echo "through: owner"; fi
""",
    "processes": """
limit=$(ulimit -u)
if [ "$limit" = unlimited ] || [ "$limit" -gt 16 ]; then echo "through: $limit processes"; fi
""",
    "leaving files": "mkdir -p deep/deeper; echo x > left; echo x > deep/deeper/left; chmod 0 deep/deeper\n",
    "files of the last job": 'for name in * .[!.]*; do if [ -e "$name" ]; then echo "through: $name"; fi; done\n',
    "leaving a process": "(setsid sleep 60 &) </dev/null >/dev/null 2>&1\n",
    "processes of the last job": """
for ((pid = 2; pid < $$; pid++)); do
    if kill -0 $pid 2>/dev/null; then echo "through: process $pid"; fi
done
""",
}

_BASH_KILLED = (
    Canary(
        name="processor time of many",
        source="for i in 1 2 3; do while :; do :; done & done; wait",
        limits=Limits(cpu_s=0.1),
        outcomes=_killed(Outcome.CPU, _STARVED),
    ),
    Canary(
        name="memory",
        source="printf -v x '%0*d' 90000000 0; echo tried",
        limits=Limits(cpu_s=2.0, memory_mib=64),
        outcomes=_killed(Outcome.MEMORY, Outcome.RUNTIME_ERROR, Outcome.SIGNAL, Outcome.CPU, _STARVED),
    ),
    Canary(
        name="output",
        source="while :; do echo 0123456789abcdef; done",
        limits=Limits(cpu_s=2.0, output_kib=16),
        outcomes=_killed(Outcome.OUTPUT, Outcome.CPU, _STARVED),
    ),
)


def bash_canaries() -> list[Canary]:
    """Of a slot that runs native programs."""
    canaries = [Canary(name=name, source=f"{source}echo tried\n") for name, source in _BASH.items()]
    own_user = Canary(
        name="user",
        source='if [ "$(id -u)" = 0 ]; then echo "through: root"; fi; echo tried',
        own_user_only=True,
    )
    return [*canaries, own_user, *_BASH_KILLED]
