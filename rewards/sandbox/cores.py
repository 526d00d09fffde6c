"""How many cores this process may use: its affinity, and the CPU quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cores() -> int:
    """At least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota()))


def _quota() -> int:
    """Whole cores, rounded up; no quota counts as all cores of the machine."""
    unlimited = os.cpu_count() or 1
    try:
        quota, period = _QUOTA_V2.read_text().split() if _QUOTA_V2.exists() else _v1()
    except (OSError, ValueError):  # no such file here, or not as kernels write it: then nothing is known of a quota
        return unlimited
    if quota == "max" or int(quota) <= 0:
        return unlimited
    return math.ceil(int(quota) / int(period))


def _v1() -> tuple[str, str]:
    return _QUOTA_V1.read_text().strip(), _PERIOD_V1.read_text().strip()
