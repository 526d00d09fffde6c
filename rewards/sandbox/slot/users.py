"""Level L1 as root: a user of its own for the slot, where its user can read what it needs."""

from __future__ import annotations

import os

_FIRST_USER = 1 << 30
"""Far above any real user; the process's number makes it the slot's own."""


def change(folder: str, readable: list[str]) -> bool:
    """Become another user, for good, if we are root and that user can read everything it needs.

    Args:
        folder: becomes that user's, with all in it.
        readable: folders that the interpreter needs.

    Returns:
        Whether we did.
    """
    if os.getuid() != 0:
        return False
    user = _FIRST_USER + os.getpid()
    if not _can_work(user, folder, readable):
        return False
    try:
        for path, _, files in os.walk(folder):
            for name in (".", *files):
                os.chown(os.path.join(path, name), user, user, follow_symlinks=False)
    except PermissionError:  # root without CAP_CHOWN
        return False
    _become(user)
    return True


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _can_work(user: int, folder: str, readable: list[str]) -> bool:
    """Try it in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _become(user)
            reachable = all(os.access(path, os.R_OK | os.X_OK) for path in readable if os.path.exists(path))
            status = 0 if reachable and _exists_above(folder) and os.access(os.__file__, os.R_OK) else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _exists_above(folder: str) -> bool:
    return os.access(os.path.dirname(folder), os.X_OK)
