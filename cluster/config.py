"""What a recipe says about the cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Section `cluster`."""

    address: str = "auto"
    """auto: RAY_ADDRESS if set, else a Ray of this process alone; local: always the latter; or host:port."""
    object_store_gib: float = 2.0
    """Shared memory for payloads and weights, local Ray only."""
    use_gpu: bool | None = None
    """Run generators and learner on GPUs; null: where Ray sees GPUs and the installed torch is not a CPU build."""
    colocate: bool = False
    """Generators stand on the learner's GPUs, and the two take turns; needs lockstep (max_staleness=0), and
    generator.count x generator.tensor_parallel_size = learner.ranks."""
    room_deadline_s: float = 120.0
    """Seconds that a run waits for CPUs, GPUs and roles that other jobs of the cluster hold, before it is refused."""
    sandbox_places: int = 0
    """Units of the resource `sandbox` for which the run asks Ray's autoscaler at its start; nodes that offer them get
    pools while the run goes on. 0: asks for none, nor does a Ray of this process alone."""
    buffer_deadline_s: float = 120.0
    """Seconds within which the rollout buffer must answer before it is replaced."""
    max_restarts: int = 10
    """Deaths of generators, scorers, buffer and learner that a run survives, all together."""
    stall_deadline_s: float = 1800.0
    """Seconds without any event in the ledger after which the run stops and says what it waits for."""
