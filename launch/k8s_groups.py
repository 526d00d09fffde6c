"""How many pods of which size a recipe takes. Engines and ranks fill pods exactly: no GPU is idle by rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from funicular.cluster.roles import GENERATOR, LEARNER, SANDBOX, TEACHER
from funicular.launch.build import demand
from funicular.launch.config import Config
from funicular.launch.k8s_options import RenderOptions
from funicular.launch.sandbox_checks import effective_sandbox, needs_sandbox

SANDBOX_PODS = 2
SANDBOX_NODE_GIB = 15
"""Of a sandbox pod besides its slots: 4 GiB each for /dev/shm and TMPDIR, the rest for Ray and the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal pods for one role."""

    role: str
    pods: int
    offers: int
    """Engine workers, ranks or slots that one pod has room for."""
    cpus: int
    memory_gib: int
    gpus: int


def groups(config: Config, options: RenderOptions) -> list[Group]:
    """One group for each role of the recipe, in the order in which overlays expect them.

    Raises:
        ValueError: an engine does not fit into a pod, or the scorers find no CPU.
    """
    asked = demand(config)
    widths = {kind.role: kind.workers for kind in asked.engines}  # of the learner's only where engines stand beside it
    engines = {
        GENERATOR: ("generator.tensor_parallel_size", config.generator.tensor_parallel_size),
        LEARNER: ("generator.tensor_parallel_size", widths[LEARNER]) if LEARNER in widths else ("learner.ranks", 1),
        TEACHER: ("distillation.tensor_parallel_size", config.distillation.tensor_parallel_size),
    }
    found = []
    for role in (GENERATOR, LEARNER, SANDBOX, TEACHER):
        if role == SANDBOX and (pods := sandbox_pods(config, options)):
            found.append(_sandbox(config, options, pods))
        elif role in asked.roles:
            key, size = engines[role]
            found.append(_compute(config, options, role, asked.roles[role] // size, key, size))
    there = sum(group.pods * group.cpus for group in found if group.role != SANDBOX)
    if there < asked.cpus + 1:  # 1: the small ones, see roles.small_cpus
        raise ValueError(
            f"reward.scorers={config.reward.scorers}: engines, ranks and scorers take {asked.cpus + 1} CPUs, and the "
            f"pods have {there}; raise --cpus-per-gpu={options.cpus_per_gpu}, or lower reward.scorers"
        )
    return found


def sandbox_pods(config: Config, options: RenderOptions) -> int:
    """As asked for, else by the verifier."""
    if options.sandbox_pods is not None:
        return options.sandbox_pods
    return SANDBOX_PODS if needs_sandbox(config, ()) else 0


def _compute(config: Config, options: RenderOptions, role: str, units: int, key: str, size: int) -> Group:
    """Pods for `units` engines of `size` workers, or for ranks, which are engines of one."""
    if size > options.gpus_per_pod:
        raise ValueError(
            f"{key}={size}: an engine stands on one pod, and --gpus-per-pod={options.gpus_per_pod}; "
            f"lower {key}, or raise --gpus-per-pod"
        )
    per_pod = max(n for n in range(1, options.gpus_per_pod // size + 1) if units % n == 0)
    workers = per_pod * size
    return Group(
        role=role,
        pods=units // per_pod,
        offers=workers,
        cpus=workers * options.cpus_per_gpu,
        memory_gib=workers * options.memory_gib_per_gpu,
        gpus=0 if config.cluster.use_gpu is False else workers,
    )


def _sandbox(config: Config, options: RenderOptions, pods: int) -> Group:
    sandbox = effective_sandbox(config)
    slots = sandbox.slots or options.sandbox_cpus
    # a program, the job of test code beside it, and files at level L1 (docs/operations.md#memory)
    slot_mib = sandbox.memory_mib + max(sandbox.memory_mib, 1024) + 2 * sandbox.disk_mib
    return Group(
        role=SANDBOX,
        pods=pods,
        offers=slots,
        cpus=options.sandbox_cpus,
        memory_gib=math.ceil(slots * slot_mib / 1024) + SANDBOX_NODE_GIB,
        gpus=0,
    )
