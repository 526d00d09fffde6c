"""Emptying a folder that judged code wrote to, without a mount namespace to throw away.

Nothing in it is opened but folders, and no link is followed. Folders are taken apart from the top: their
subfolders move up, so neither a path nor a recursion grows with the depth of the tree.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Iterator

_MOST_FOLDERS = 500
"""Waiting to be looked at, each an open descriptor."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LISTABLE = 0o500
"""Read and search, for the owner."""


class TooMuch(RuntimeError):
    """There is more than can be removed in the time given."""


def empty(folder: str, seconds: float) -> None:
    """Remove everything in `folder`, which is ours.

    Raises:
        TooMuch: `seconds` passed.
        OSError: something cannot be removed.
    """
    deadline = time.monotonic() + seconds
    os.chmod(folder, 0o700)
    top = os.open(folder, _FOLDER)
    # a name that nothing in there has, so that what moves up replaces nothing
    token = secrets.token_hex(8)
    new_names = (f".{token}-{number}" for number in itertools.count())
    try:
        while names := _names(top):
            for name, is_folder in names:
                if is_folder:
                    _take_apart(top, name, new_names, deadline)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
    finally:
        os.close(top)


def _take_apart(top: int, name: str, new_names: Iterator[str], deadline: float) -> None:
    """Empty one subfolder: unlink its files, move its folders to the top."""
    os.chmod(name, 0o700, dir_fd=top)
    inside = os.open(name, _FOLDER, dir_fd=top)
    try:
        for entry, is_folder in _names(inside):
            if time.monotonic() > deadline:
                raise TooMuch(name)
            if is_folder:
                os.chmod(entry, 0o700, dir_fd=inside)  # a folder without write permission does not move
                os.rename(entry, next(new_names), src_dir_fd=inside, dst_dir_fd=top)
            else:
                os.unlink(entry, dir_fd=inside)
    finally:
        os.close(inside)


def _names(folder: int) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def mib_used(folder: str, at_most_entries: int) -> float:
    """MiB of the files in `folder`; infinite if there are more than `at_most_entries`, or a folder goes on hiding.

    The tree may change meanwhile: what is gone counts as nothing. A folder that its maker closed is opened.
    """
    blocks = 0.0
    for seen, size in enumerate(_sizes(folder)):
        if seen >= at_most_entries:
            return float("inf")
        blocks += size
    return blocks * 512 / (1 << 20)


def _open_listable(name: str, parent: int) -> int:
    """A descriptor of a subfolder, whose mode is changed if it does not let us list it.

    By descriptor, because the job still runs: a name could be a link to something of ours by the time it is used.
    """
    path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(path).st_mode & _LISTABLE != _LISTABLE:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(path)


def _sizes(folder: str) -> Iterator[float]:
    try:
        waiting = [os.open(folder, _FOLDER)]
    except OSError:
        return
    try:
        while waiting:
            current = waiting.pop()
            try:
                for name, is_folder in _names(current):
                    yield os.stat(name, dir_fd=current, follow_symlinks=False).st_blocks
                    if is_folder:
                        if len(waiting) >= _MOST_FOLDERS:
                            yield float("inf")
                        waiting.append(_open_listable(name, current))
            except PermissionError:  # closed again since it was opened
                yield float("inf")
            except OSError:
                continue  # removed since it was listed
            finally:
                os.close(current)
    finally:
        for left in waiting:
            os.close(left)
