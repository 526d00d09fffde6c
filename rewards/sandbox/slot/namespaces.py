"""Level L3: new namespaces, and a root that holds what a job needs and nothing else, read-only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from funicular.rewards.sandbox.slot import kernel

JOB_UID = 1
"""Of every job, inside its user namespace."""
WORK, BUILD, INPUT, SITE = "/work", "/build", "/input", "/sp"
CANARY_PATH = "/tests/expected_output.json"
FIRST_JOB_UID = 60000
"""Outside the user namespace; each slot adds its number, of at most four digits: 65534 is nobody's."""

_ALTERNATIVES = "/etc/alternatives"
"""Links only, by which Debian finds awk and others."""
_LINKS_OR_FOLDERS = ("lib", "lib32", "lib64", "libx32", "bin", "sbin")
_DEVICES = ("null", "zero", "urandom")
_SMALL = "size=1m,nr_inodes=600"
_MOUNT_POINTS = ("/media", "/srv", "/mnt", "/opt", "/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPlan:
    """What the root of a slot shows."""

    read_only: Sequence[str]
    """Folders shown where they are."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Folders shown at another path."""
    hidden: Sequence[str] = ()
    """Folders in `read_only` that look empty."""
    canary: str = ""
    """What the file that looks like expected outputs holds."""
    native: bool = False
    """Programs in the working folder may be executed; there is a folder for compiled programs."""


def enter_user_namespace(job_number: int) -> bool:
    """Become the owner of a new user namespace, with all capabilities in it and none outside.

    Started as root, jobs get a user id of their own outside too: root is exempt from RLIMIT_NPROC. The map of two
    ids must be written from the namespace above, hence the helper process.

    Returns:
        Whether jobs have an id of their own.

    Raises:
        OSError: the kernel, or whoever confines us, does not allow user namespaces.
    """
    uid, gid = os.getuid(), os.getgid()
    if uid != 0:
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map_one(uid, gid)
        return False
    ours, helpers = socket.socketpair()
    helper = os.fork()
    if helper == 0:
        ours.close()
        _map_two(helpers, FIRST_JOB_UID + job_number)
    helpers.close()
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        ours.sendall(b"x")
        mapped = ours.recv(1) == b"y"
    finally:
        ours.close()
        os.waitpid(helper, 0)
    if not mapped:
        _map_one(uid, gid)
    return mapped


def _map_two(helpers: socket.socket, job_id: int) -> NoReturn:
    """In the helper process: map our parent's ids, once it has left our namespace; never returns."""
    try:
        if helpers.recv(1) == b"x":
            helpers.sendall(b"y" if _map_both(os.getppid(), job_id) else b"n")
    finally:
        os._exit(0)


def _map_both(pid: int, job_id: int) -> bool:
    """False: no CAP_SETUID in the namespace above, or no such id there."""
    try:
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{kind}", f"0 0 1\n{JOB_UID} {job_id} 1\n")
    except OSError:
        return False
    return True


def _map_one(uid: int, gid: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{JOB_UID} {uid} 1")
    _write("/proc/self/gid_map", f"{JOB_UID} {gid} 1")


def _write(path: str, text: str) -> None:
    """One unbuffered write: a map is accepted or refused as a whole, and a buffered file would hide the error."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enter_other_namespaces() -> None:
    """Mounts, network, ipc, host name, cgroup view; and pids, for the children of this process.

    Raises:
        OSError: the kernel, or whoever confines us, does not allow it.
    """
    kernel.unshare(
        kernel.CLONE_NEWNS
        | kernel.CLONE_NEWNET
        | kernel.CLONE_NEWIPC
        | kernel.CLONE_NEWUTS
        | kernel.CLONE_NEWCGROUP
        | kernel.CLONE_NEWPID
    )
    kernel.set_host_name(b"sandbox")


def build_root(plan: RootPlan) -> None:
    """Mount the root and go there. The working folder is mounted by `mount_work`.

    Raises:
        OSError: a mount was refused.
    """
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = _mount_point(plan)
    kernel.mount("none", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"{_SMALL},mode=755")
    for source in plan.read_only:
        _show(source, root + source)
    os.mkdir(root + SITE)
    for source, target in plan.elsewhere.items():
        _show(source, root + target)
    for folder in plan.hidden:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("none", root + folder, "tmpfs", flags, "size=4k,nr_inodes=1,mode=755")
    for name in _LINKS_OR_FOLDERS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            _show(f"/{name}", f"{root}/{name}")
    for name in _DEVICES:
        _show(f"/dev/{name}", f"{root}/dev/{name}", devices=True)
    if plan.native and os.path.isdir(_ALTERNATIVES):
        _show(_ALTERNATIVES, root + _ALTERNATIVES)
    os.symlink(f"{INPUT}/stdin", f"{root}/dev/stdin")
    os.symlink("work", f"{root}/tmp")
    for folder in (WORK, INPUT, *((BUILD,) if plan.native else ()), os.path.dirname(CANARY_PATH)):
        os.mkdir(root + folder)
    with open(root + CANARY_PATH, "w") as file:
        file.write(plan.canary)
    kernel.enter_root(root)
    kernel.mount("none", INPUT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, "nr_inodes=4,mode=755")
    read_only = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, read_only)


def _mount_point(plan: RootPlan) -> str:
    """A folder on which to build the root: it must hide nothing that the root shows."""
    shown = [*plan.read_only, *plan.elsewhere]
    for folder in _MOUNT_POINTS:
        if os.path.isdir(folder) and not any(f"{source}/".startswith(f"{folder}/") for source in shown):
            return folder
    raise FileNotFoundError(f"none of {', '.join(_MOUNT_POINTS)} can serve as a mount point")


def _show(source: str, target: str, *, devices: bool = False) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
    kernel.bind_read_only(source, target, devices=devices)


def mount_work(disk_mib: int, *, executable: bool) -> None:
    """Mount an empty working folder that holds `disk_mib`.

    Raises:
        OSError: the mount was refused.
    """
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if executable else kernel.MS_NOEXEC)
    # one MiB more, so that a single file meets RLIMIT_FSIZE, which ends the job, before it meets a full disk
    kernel.mount("none", WORK, "tmpfs", flags, f"size={disk_mib + 1}m,nr_inodes={512 + 64 * disk_mib},mode=1777")
