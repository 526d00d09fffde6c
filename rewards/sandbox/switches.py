"""Which switch to change when a slot cannot start."""

from __future__ import annotations

import errno
import platform

from funicular.rewards.sandbox.types import Level

_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set the sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "set the sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or give this program an AppArmor "
        "profile that allows userns",
    ),
    ("/proc/sys/user/max_user_namespaces", "0", "set the sysctl user.max_user_namespaces to 10000 or more"),
)
_POD = (
    "in a pod: securityContext.seccompProfile.type: Unconfined and appArmorProfile.type: Unconfined; with SELinux, "
    "a type that may mount, or seLinuxOptions.type: spc_t"
)


def to_reach(level: Level, error_number: int | None) -> str:
    """What to change on this node so that `level` is reached, as far as the kernel tells us."""
    if level is Level.L1:
        return (
            "Linux 5.13 or newer with Landlock: add `landlock` to the kernel's lsm= parameter "
            f"(this kernel is {platform.release()})"
        )
    for path, closed, advice in _SWITCHES:
        if _read(path) == closed:
            return advice
    if error_number == errno.ENOSYS:
        return f"Linux 5.12 or newer (this kernel is {platform.release()})"
    if error_number in (errno.EPERM, errno.EACCES):
        return f"{_POD}; then user namespaces and mounts in them are allowed"
    if error_number == errno.ENOSPC:
        return "raise the sysctl user.max_user_namespaces, or end what uses them up"
    return "see the reason"


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None
