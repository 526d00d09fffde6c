"""`metrics.jsonl`: the run's own account of its metrics, written before anything is sent anywhere.

One JSON object per line: `step`, `attempt`, `time` (seconds since 1970), `policy_version` where it is known,
and one key per metric. A step may have several lines of one attempt (training, then evaluation): they add up.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECORD_KEYS = ("step", "attempt", "time", "policy_version")
"""Keys of a line that are no metrics."""

_log = logging.getLogger(__name__)


class MetricsFile:
    """Appends lines. A disk error is reported and counted, and the next line is tried again.

    A full disk must not end a training run, nor go unseen.
    """

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        self.path = path
        self.errors = 0
        """Lines that could not be written."""
        self._complain = complain
        self._fd: int | None = None
        self._clean_end = False

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write one line and hand it to the kernel; False if the disk refused it."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            self._open()
            assert self._fd is not None
            if not self._clean_end:
                line = b"\n" + line  # what a killed process or a full disk left unfinished stays a line of its own
            self._clean_end = os.write(self._fd, line) == len(line)
            if not self._clean_end:
                raise OSError(f"only part of a line of {len(line)} bytes was written")
        except OSError as error:
            self.errors += 1
            self._complain(f"metrics of step {record.get('step')} are NOT in {self.path}: {error}")
            return False
        return True

    def close(self) -> None:
        """Safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        if self._fd is not None:
            return
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        self._clean_end = size == 0 or os.pread(self._fd, 1, size - 1) == b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One record per step, in order: the lines of the step's highest attempt, put together.

    A line that is not JSON (a process was killed while it wrote) is left out with a warning.

    Raises:
        OSError: the file cannot be read.
    """
    steps: dict[int, dict[str, Any]] = {}
    for record in read_lines(path):
        steps.setdefault(record["step"], {}).update(record)
    return list(steps.values())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of each step's highest attempt as they were written, in the order of steps.

    Raises:
        OSError: the file cannot be read.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                step, attempt = int(record["step"]), int(record["attempt"])
            except (ValueError, KeyError, TypeError):
                _log.warning("%s line %d is not a metrics record; left out", path, number)
                continue
            known = steps.setdefault(step, [])
            if known and attempt > known[0]["attempt"]:
                known.clear()
            if not known or attempt == known[0]["attempt"]:
                known.append(record)
    return [record for step in sorted(steps) for record in steps[step]]
