"""Which system calls a job may make.

Three answers: allowed; denied quietly, for what honest programs and libraries try as a matter of course and can do
without; and denied with a notification, by which the slot host counts it. What is not listed is the last.

At L1 a job has the same user as the process that owns the slot, and no walls but Landlock and this filter. Landlock
knows nothing of file modes, times and attributes, of signals by way of fcntl(F_SETOWN), of limits and priorities of
other processes; before its version 3 nothing of truncation. All of that is closed here.
"""

from __future__ import annotations

import errno

from funicular.rewards.sandbox.slot.seccomp import (
    ALLOW,
    NOTIFY,
    OWN_PID,
    Filter,
    Rule,
    assemble,
    bits,
    deny,
    masked_not,
    null,
    one_of,
    without_flags,
)
from funicular.rewards.sandbox.slot.syscalls import Architecture
from funicular.rewards.sandbox.types import Level

_ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek
stat fstat lstat newfstatat statx access faccessat faccessat2 statfs fstatfs
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
mmap mprotect munmap brk mremap msync madvise membarrier
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
pause nanosleep clock_nanosleep getitimer setitimer alarm
pipe pipe2 dup dup2 dup3 flock
getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid
getpgid getpgrp getsid setsid setpgid umask
gettimeofday time clock_gettime clock_getres times getrusage sysinfo uname getrlimit setrlimit getcpu
capget getpriority sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_getattr
sched_get_priority_max sched_get_priority_min sched_rr_get_interval
futex futex_waitv set_robust_list set_tid_address rseq restart_syscall arch_prctl
getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
symlink symlinkat readlink readlinkat ftruncate fallocate fsync fdatasync fadvise64 readahead
sendfile copy_file_range getsockname getpeername getsockopt shutdown
getrandom wait4 waitid exit exit_group sendmsg seccomp
"""
"""`sendmsg` and `seccomp` only until the listener is handed over: `sealing_filter`."""

_OF_FILES = "chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat truncate link linkat"
"""Allowed at L3, where mounts protect everything but the job's own files."""

_QUIET = {
    errno.EPERM: """sched_setaffinity sched_setscheduler sched_setparam sched_setattr setpriority ioprio_set
        mlock mlock2 mlockall munlock munlockall setsockopt pidfd_open sync syncfs personality
        utime utimes futimesat utimensat""",
    errno.ENOSYS: """clone3 io_uring_setup io_uring_enter io_uring_register pkey_alloc pkey_free pkey_mprotect
        get_mempolicy set_mempolicy mbind move_pages set_mempolicy_home_node futex_wake futex_wait futex_requeue
        map_shadow_stack mseal cachestat inotify_init inotify_init1 get_robust_list mincore ioprio_get
        timer_create""",
    errno.EINVAL: "splice tee vmsplice",
    errno.ENOTSUP: """getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
        setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr""",
}

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_CLONE_PARENT_OR_PTRACE = 0x0000A000
_TERMINAL_SIZE_AND_BLOCKING = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)
"""Duplicate, flags, locks, pipe size, seals; not owners, signals, leases, or larger pipes."""
_PRCTL = (15, 16, 0x53564D41)
"""Names of threads and of memory."""
_AF_UNIX = 1
_MSG_OOB = 1
"""A byte out of order would pass by the check that nothing was said unasked."""
_OPEN_MODE_AND_TRUNCATE, _TRUNCATE_WITHOUT_WRITING = 0x203, (0x200, 0x203)


def rules(level: Level, *, native: bool) -> dict[str, Rule]:
    """What to do about each system call; about those without a rule: NOTIFY.

    Args:
        native: the job may fork and execute (L3 only).
    """
    found: dict[str, Rule] = {name: deny(code) for code, names in _QUIET.items() for name in names.split()}
    found |= dict.fromkeys(_ALLOWED.split(), ALLOW)
    found |= {
        "clone": bits(0, needed=_CLONE_THREAD, forbidden=_CLONE_NAMESPACES, otherwise=NOTIFY),
        "ioctl": one_of(1, _TERMINAL_SIZE_AND_BLOCKING, deny(errno.ENOTTY)),
        "fcntl": one_of(1, _FCNTL, deny(errno.EPERM)),
        "prctl": one_of(0, _PRCTL, deny(errno.EINVAL)),
        "prlimit64": one_of(0, (0, OWN_PID), NOTIFY),
        "socketpair": one_of(0, (_AF_UNIX,), NOTIFY),
        "sendto": without_flags(3, _MSG_OOB, deny(errno.EOPNOTSUPP), null(4, NOTIFY)),
        "recvfrom": without_flags(3, _MSG_OOB, deny(errno.EOPNOTSUPP), ALLOW),
        "kill": one_of(0, (OWN_PID,), NOTIFY),
        "tgkill": one_of(0, (OWN_PID,), NOTIFY),
        "open": masked_not(1, _OPEN_MODE_AND_TRUNCATE, _TRUNCATE_WITHOUT_WRITING, NOTIFY),
        "openat": masked_not(2, _OPEN_MODE_AND_TRUNCATE, _TRUNCATE_WITHOUT_WRITING, NOTIFY),
        "creat": ALLOW,
    }
    if level is Level.L3:
        found |= dict.fromkeys(_OF_FILES.split(), ALLOW)
    else:
        found["fallocate"] = deny(errno.EOPNOTSUPP)  # filling the disk must at least cost the time to write it
    if native:
        # bash, id and others ask nscd for user names, over a Unix socket
        found["socket"] = one_of(0, (_AF_UNIX,), NOTIFY, then=deny(errno.EACCES))
        found |= dict.fromkeys(("fork", "vfork", "execve", "kill", "tkill", "tgkill", "mincore"), ALLOW)
        found["clone"] = bits(0, needed=0, forbidden=_CLONE_NAMESPACES | _CLONE_PARENT_OR_PTRACE, otherwise=NOTIFY)
    return found


def without_notifications(found: dict[str, Rule]) -> dict[str, Rule]:
    """The same, for kernels that cannot announce calls: what would be announced fails with EPERM."""
    return {name: _quiet(rule) for name, rule in found.items()}


def _quiet(rule: Rule) -> Rule:
    if isinstance(rule, int):
        return deny(errno.EPERM) if rule == NOTIFY else rule
    return tuple((code, true, false, deny(errno.EPERM) if k == NOTIFY else k) for code, true, false, k in rule)


def job_filter(machine: Architecture, level: Level, *, native: bool, notify: bool) -> Filter:
    """The filter of a job.

    Args:
        native: it may fork and execute (L3 only).
        notify: announce denied calls; else they fail with EPERM and nobody is told.
    """
    found = rules(level, native=native)
    if notify:
        return Filter(assemble(found, machine, NOTIFY))
    return Filter(assemble(without_notifications(found), machine, deny(errno.EPERM)))


def sealing_filter(machine: Architecture) -> Filter:
    """Stacked on `job_filter` once the listener is handed over: no more descriptors out, no more filters.

    It says errno, which the kernel prefers to a notification.
    """
    found: dict[str, Rule] = dict.fromkeys(("sendmsg", "seccomp"), deny(errno.EPERM))
    return Filter(assemble(found, machine, ALLOW))
