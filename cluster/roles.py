"""Roles: Ray resources by which a cluster says which of its nodes are for which part.

A node that is started with the custom resource `learner: 4` has room for four learner ranks. Where no node offers a
role, its parts go wherever CPUs and GPUs are free, as on a laptop. Where nodes do, they go nowhere else: a GPU alone
would let learner ranks take half of the GPUs that an engine of two needs on one node.
"""

from __future__ import annotations

from collections.abc import Collection

GENERATOR = "generator"
LEARNER = "learner"
TEACHER = "teacher"
SANDBOX = "sandbox"
ROLES = (GENERATOR, LEARNER, TEACHER, SANDBOX)


def role_resources(role: str, amount: int, offered: Collection[str]) -> dict[str, float]:
    """What an actor of that role asks of Ray besides CPUs and GPUs."""
    return {role: float(amount)} if role in offered else {}


def small_cpus(offered: Collection[str]) -> float:
    """CPUs that an actor with next to no work asks for: none, or a little where nodes are kept for the sandbox.

    Ray puts an actor that asks for nothing on any node. Those nodes offer no CPUs and may lack the packages.
    """
    return 0.01 if SANDBOX in offered else 0.0
