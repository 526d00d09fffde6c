"""Inside an engine worker: files of memory, mapped to be read.

Mapping costs more than reading: for every page the kernel makes an entry. So what lasts, such as the object store, is
mapped once and whole; at the second or third version all of its pages have their entries.
"""

from __future__ import annotations

import mmap
import os

_MOST_KEPT = 256
"""Each holds a descriptor, of which a process may have 1,024 by default."""


class Mappings:
    """Mappings of files, by device and inode: a path under /proc may mean another file tomorrow."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], mmap.mmap] = {}

    def map(self, path: str, *, lasts: bool) -> mmap.mmap:
        """A whole file. Nobody may write to it.

        Args:
            lasts: it will be asked for again; the mapping is kept.

        Raises:
            OSError: there is no such file, or it may not be read.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino)
            mapping = self._kept.get(key)
            if mapping is None or len(mapping) < status.st_size:
                mapping = mmap.mmap(descriptor, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
                if lasts:
                    self._keep(key, mapping)
            return mapping
        finally:
            os.close(descriptor)

    def _keep(self, key: tuple[int, int], mapping: mmap.mmap) -> None:
        self._kept.pop(key, None)
        self._kept[key] = mapping
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
