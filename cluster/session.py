"""Connecting to Ray: the cluster that a job runs on, or a Ray of this process alone."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from funicular.cluster.config import ClusterConfig
from funicular.cluster.roles import ROLES, SANDBOX

NAMESPACE = "funicular"
_SPINS = "1000"
"""How long OpenMP threads on CPUs spin before they sleep: what libgomp takes where threads outnumber cores. It cannot
know that generators and learner ranks share them. With its default, 300,000, an overlapping step took 2.7 times as
long."""


_asked_for_sandbox = False
"""This process has asked Ray's autoscaler for nodes, and not taken that back."""
log = logging.getLogger(__name__)


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
class Engines:
    """Engines of one kind. Each is one actor, so all of its workers stand on one node."""

    role: str
    count: int
    workers: int
    """Of one engine: CPUs, GPUs where there are any, and units of its role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a recipe asks of the cluster."""

    cpus: int
    gpus: int
    """Needed where generators and learner run on GPUs."""
    roles: Mapping[str, int] = field(default_factory=dict)
    """Role to the number of engine workers or ranks; counts where the cluster offers the role."""
    engines: tuple[Engines, ...] = ()


def ray_address(config: ClusterConfig) -> str:
    """Where a run connects to; `local`: it starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "local") if config.address == "auto" else config.address


def sandbox_nodes_come(config: ClusterConfig) -> bool:
    """Whether the run asks an autoscaler for them; a Ray of its own has none."""
    return config.sandbox_places > 0 and ray_address(config) != "local"


def connect(config: ClusterConfig, demand: Demand) -> Session:
    """Connect to the cluster of `cluster.address`, or start Ray here, and check that it holds the recipe.

    A Ray of our own is told to have as many CPUs as the recipe asks for: on a laptop the parts share the cores.

    Raises:
        ClusterTooSmall: before anything is started on the cluster; at once if it never could hold the recipe, after
            `room_deadline_s` if others use it.
    """
    import ray

    address = ray_address(config)
    local = address == "local"
    # A variable that both the job and this process name has the same value in both; Ray refuses it otherwise
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    environment = {"env_vars": worker_environment()}
    cpu_only = config.use_gpu is False or (config.use_gpu is None and torch_is_cpu_build())
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
        except ray.exceptions.AuthenticationError as error:  # before it connects: no token is here
            raise ValueError(f"cluster.address={config.address}: {str(error).splitlines()[0]}") from error
        except ConnectionError as error:
            # Ray says so of a refused token too. `ray start` asks for one where the machine has it; drivers send none
            token = "give its token in RAY_AUTH_TOKEN"
            if os.environ.get("RAY_AUTH_MODE") != "token":
                token = "set RAY_AUTH_MODE=token if it asks for a token (the message above says so)"
            raise ValueError(
                f"cluster.address={config.address}: no Ray cluster answers at {address}; start one there (ray start "
                f"--head), correct the address, {token}, or set cluster.address=local"
            ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = not cpu_only and (_total(nodes, "GPU") > 0 or config.use_gpu is True)
    _refuse_too_small(demand, nodes, use_gpu=use_gpu)
    if not local:
        _wait_for_room(demand, _offered(nodes), config.room_deadline_s, use_gpu=use_gpu)
    roles = _offered(nodes) | ({SANDBOX} if sandbox_nodes_come(config) else set())
    return Session(use_gpu=use_gpu, roles=roles)


def seen_by_actors(folder: Path) -> Path:
    """How actors find a folder of the driver: from their own working directory, if the job brought it along.

    Ray unpacks a job's working directory on each node, not always at the same place.
    """
    import ray

    if ray.get_runtime_context().runtime_env.get("working_dir") and folder.is_relative_to(Path.cwd()):
        return folder.relative_to(Path.cwd())
    return folder


def sandbox_cpus_by_node() -> dict[str, int]:
    """Id of each node for sandbox pools, and how many cores they share there: nodes with the resource `sandbox` and as
    many as it says; if there are none, all that have CPUs to offer.

    This machine counts with the cores that there are: a Ray of our own is told of as many as the recipe asks for.
    """
    import ray

    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if kept := _kept_for_sandbox(alive):
        return kept
    cpus = {node: int(resources.get("CPU", 0)) for node, resources in alive.items()}
    own = ray.get_runtime_context().get_node_id()
    if own in cpus:
        cpus[own] = min(cpus[own], len(os.sched_getaffinity(0)))
    return {node: count for node, count in cpus.items() if count}


def nodes_now() -> tuple[frozenset[str], dict[str, int]]:
    """Ids of the nodes that have not left; and of those that offer `sandbox`, how much."""
    import ray

    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return frozenset(alive), _kept_for_sandbox(alive)


def _kept_for_sandbox(alive: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    return {node: int(resources[SANDBOX]) for node, resources in alive.items() if SANDBOX in resources}


def ask_for_sandbox(places: int) -> None:
    """Have Ray's autoscaler, where there is one, bring nodes that offer so much of `sandbox`, and keep them.

    A cluster has one such request: that of the run that asked last. `disconnect` takes it back.
    """
    global _asked_for_sandbox
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{SANDBOX: 1}] * places)
    _asked_for_sandbox = places > 0


def wait_for_sandbox(deadline_s: float) -> dict[str, int]:
    """Ids of the nodes that offer `sandbox`, and how much, as soon as there is one.

    Raises:
        ClusterTooSmall: none came in time.
    """
    limit = time.monotonic() + deadline_s
    while not (found := nodes_now()[1]):
        if time.monotonic() > limit:
            raise ClusterTooSmall(
                f"no node that offers the resource `sandbox` came within {deadline_s:.0f} s (cluster.room_deadline_s), "
                "and cluster.sandbox_places asks for some. Is Ray's autoscaler on, and has it a group of such nodes? "
                "cluster.sandbox_places=0 judges on the nodes that there are."
            )
        time.sleep(1.0)
    return found


def disconnect() -> None:
    """Leave the cluster; a Ray of our own ends with all its processes."""
    import ray

    if _asked_for_sandbox and ray.is_initialized():
        try:
            ask_for_sandbox(0)
        except Exception:  # of whatever kind: the cluster may be gone, and the run has its own reason to end
            log.warning("the autoscaler's nodes for the sandbox were not given back", exc_info=True)
    ray.shutdown()


def _total(nodes: Sequence[Mapping[str, float]], resource: str) -> int:
    return int(sum(node.get(resource, 0.0) for node in nodes))


def _offered(nodes: Sequence[Mapping[str, float]]) -> frozenset[str]:
    """Roles that nodes are kept for."""
    return frozenset(role for role in ROLES if any(role in node for node in nodes))


def _asked(demand: Demand, offered: frozenset[str], *, use_gpu: bool) -> Iterator[tuple[str, int]]:
    """Resource and how much of it the recipe asks for, of those that count."""
    yield "CPU", demand.cpus
    if use_gpu:
        yield "GPU", demand.gpus
    yield from ((role, asked) for role, asked in demand.roles.items() if role in offered)


def _refuse_too_small(demand: Demand, nodes: Sequence[Mapping[str, float]], *, use_gpu: bool) -> None:
    offered = _offered(nodes)
    rows = [(name, asked, _total(nodes, name)) for name, asked in _asked(demand, offered, use_gpu=use_gpu)]
    for kind in demand.engines:
        needed = {"CPU", *({"GPU"} if use_gpu else ()), *({kind.role} & offered)}
        room = sum(int(min(node.get(name, 0.0) for name in needed) // kind.workers) for node in nodes)
        rows.append((f"{kind.role} engines of {kind.workers} on one node each", kind.count, room))
    if any(asked > there for _, asked, there in rows):
        raise ClusterTooSmall(
            f"the cluster cannot hold this recipe:\n{_table(rows, 'there')}\n"
            "Lower generator.count, generator.tensor_parallel_size, learner.ranks or reward.scorers, add nodes, or, "
            "if GPUs are what is missing, have learner and generators take turns on the same ones "
            "(cluster.colocate=true), or set cluster.use_gpu=false. CPUs are places and not cores: a small machine "
            "may offer more of them (ray start --num-cpus=N)."
        )


def _wait_for_room(demand: Demand, offered: frozenset[str], deadline_s: float, *, use_gpu: bool) -> None:
    """Until what the recipe asks for is free: a run before this one, or another job, may still hold it."""
    import ray

    limit = time.monotonic() + deadline_s
    while True:
        free = ray.available_resources()
        rows = [(name, asked, int(free.get(name, 0.0))) for name, asked in _asked(demand, offered, use_gpu=use_gpu)]
        if all(asked <= there for _, asked, there in rows):
            return
        if time.monotonic() > limit:
            raise ClusterTooSmall(
                f"other jobs hold what this recipe needs, after {deadline_s:.0f} s:\n{_table(rows, 'free')}\n"
                "`funicular status` lists the jobs of this cluster. Stop one, ask for less, or wait longer with "
                "cluster.room_deadline_s."
            )
        time.sleep(1.0)


def _table(rows: Sequence[tuple[str, int, int]], word: str) -> str:
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(
        f"  {name:<{width}}  asked {asked:>4}  {word} {there:>4}  missing {max(0, asked - there):>4}"
        for name, asked, there in rows
    )


def torch_is_cpu_build() -> bool:
    """Whether the torch that is installed knows no GPUs; torch is not loaded for it."""
    return version("torch").endswith("+cpu")


def worker_environment() -> dict[str, str]:
    """What Ray's processes need of this one's environment; Ray passes nothing on by itself.

    Not the hub's token: the driver fetches models and data, and Ray's dashboard and state files show what is passed.
    """
    passed = ("HF_", "NCCL_", "GLOO_", "GOMP_", "GLIBC_TUNABLES", "PYTHONDONTWRITEBYTECODE", "FUNICULAR_")
    defaults = {"TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": _SPINS}
    given = {name: value for name, value in os.environ.items() if name.startswith(passed) and name != "HF_TOKEN"}
    return defaults | given
