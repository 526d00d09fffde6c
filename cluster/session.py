"""Connecting to Ray: the cluster that a job runs on, or a Ray of this process alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from funicular.cluster.config import ClusterConfig
from funicular.cluster.roles import ROLES, SANDBOX

NAMESPACE = "funicular"
_SPINS = "1000"
"""How long OpenMP threads on CPUs spin before they sleep: what libgomp takes where threads outnumber cores. It cannot
know that generators and learner ranks share them. With its default, 300,000, an overlapping step took 2.7 times as
long."""


class ClusterTooSmall(ValueError):
    """The cluster cannot hold the recipe; says what was asked, what is there and what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A connection to Ray."""

    use_gpu: bool
    """False: generators and learner run on CPU."""
    roles: frozenset[str]
    """Roles that nodes of this cluster are kept for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a recipe asks of the cluster."""

    cpus: int
    gpus: int
    """Needed where generators and learner run on GPUs."""
    roles: Mapping[str, int] = field(default_factory=dict)
    """Role to the number of engine workers or ranks; counts where the cluster offers the role."""


def connect(config: ClusterConfig, demand: Demand) -> Session:
    """Connect to the cluster of `cluster.address`, or start Ray here, and check that it holds the recipe.

    A Ray of our own is told to have as many CPUs as the recipe asks for: on a laptop the parts share the cores.

    Raises:
        ClusterTooSmall: before anything is started on the cluster.
    """
    import ray

    address = config.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "local")
    local = address == "local"
    environment = {"env_vars": _worker_environment()}
    cpu_only = config.use_gpu is False or (config.use_gpu is None and _torch_is_cpu_build())
    if local:
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: workers lose to everything else
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a failed group's payload, which nobody reads
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=max(demand.cpus, os.cpu_count() or 1),
            num_gpus=0 if cpu_only else None,
            object_store_memory=int(config.object_store_gib * 2**30),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env=environment,
        )
    else:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, runtime_env=environment)
        except ConnectionError as error:
            raise ValueError(
                f"cluster.address={config.address}: no Ray cluster answers at {address}; start one there (ray start "
                "--head), correct the address, or set cluster.address=local"
            ) from error
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = not cpu_only and (gpus > 0 or config.use_gpu is True)
    offered = {role: int(resources[role]) for role in ROLES if role in resources}
    _check(demand, cpus=int(resources.get("CPU", 0)), gpus=gpus if use_gpu else None, offered=offered)
    return Session(use_gpu=use_gpu, roles=frozenset(offered))


def sandbox_cpus_by_node() -> dict[str, int]:
    """Id of each node for sandbox pools, and how many cores they share there: nodes with the resource `sandbox` and as
    many as it says; if there are none, all that have CPUs to offer.

    This machine counts with the cores that there are: a Ray of our own is told of as many as the recipe asks for.
    """
    import ray

    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if kept := {node: int(resources[SANDBOX]) for node, resources in alive.items() if SANDBOX in resources}:
        return kept
    cpus = {node: int(resources.get("CPU", 0)) for node, resources in alive.items()}
    own = ray.get_runtime_context().get_node_id()
    if own in cpus:
        cpus[own] = min(cpus[own], len(os.sched_getaffinity(0)))
    return {node: count for node, count in cpus.items() if count}


def disconnect() -> None:
    """Leave the cluster; a Ray of our own ends with all its processes."""
    import ray

    ray.shutdown()


def _check(demand: Demand, *, cpus: int, gpus: int | None, offered: Mapping[str, int]) -> None:
    rows = [("CPU", demand.cpus, cpus)]
    if gpus is not None:
        rows.append(("GPU", demand.gpus, gpus))
    rows += [(role, asked, offered[role]) for role, asked in demand.roles.items() if role in offered]
    if any(asked > there for _, asked, there in rows):
        table = "\n".join(
            f"  {name:<9} asked {asked:>4}  there {there:>4}  missing {max(0, asked - there):>4}"
            for name, asked, there in rows
        )
        raise ClusterTooSmall(
            f"the cluster cannot hold this recipe:\n{table}\n"
            "Lower generator.count, generator.tensor_parallel_size, learner.ranks or reward.scorers, add nodes, or, "
            "if GPUs are what is missing, set cluster.use_gpu=false."
        )


def _torch_is_cpu_build() -> bool:
    return version("torch").endswith("+cpu")


def _worker_environment() -> dict[str, str]:
    """What Ray's processes need of this one's environment; Ray passes nothing on by itself."""
    passed = ("HF_", "NCCL_", "GLOO_", "GOMP_", "PYTHONDONTWRITEBYTECODE", "FUNICULAR_")
    environment = {name: value for name, value in os.environ.items() if name.startswith(passed)}
    return {"TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": _SPINS, **environment}
