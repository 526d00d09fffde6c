"""What a recipe says about the sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from funicular.rewards.sandbox.types import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """Section `sandbox`."""

    isolation: Literal["auto", "L3", "L1"] = "auto"
    """Level at which untrusted code runs; auto: the highest that the node reaches."""
    min_level: Literal["L3", "L1"] = "L1"
    """A node that reaches less refuses to start, and says why and which switch to change."""
    slots: int = 0
    """Slots of each node; each runs one submission at a time; 0: one per core. Above 16, several pools share them."""
    queue: int = 0
    """Submissions that may wait in one pool before it refuses more for a while; 0: 64 per slot."""
    cpu_s: float = 2.0
    """CPU seconds of one job. Its wall time is max(3 x cpu_s, cpu_s + 2): time in which it had no core does not count,
    at most 5 times that."""
    submission_s: float = 60.0
    """Seconds of wall time that all jobs of one submission may take together; what takes longer has failed."""
    memory_mib: int = 512
    """Memory of one job."""
    processes: int = 32
    """Threads and processes of one job."""
    output_kib: int = 1024
    """Standard output of one job."""
    disk_mib: int = 32
    """Files of one job."""
    all_tests: bool = False
    """Run every test, for fractional rewards; false: stop at the first that fails."""
    allow_weak_integrity: bool = False
    """Judge tests that share a process with the judged code, which can then write its own verdict."""
    deadline_s: float = 300.0
    """Seconds within which a submission must be judged, its wait in the queue included."""
    recycle_after: int = 5000
    """Jobs after which a slot is replaced by a fresh one."""

    @property
    def limits(self) -> Limits:
        """Of one job."""
        return Limits(
            cpu_s=self.cpu_s,
            submission_s=self.submission_s,
            memory_mib=self.memory_mib,
            processes=self.processes,
            output_kib=self.output_kib,
            disk_mib=self.disk_mib,
        )
