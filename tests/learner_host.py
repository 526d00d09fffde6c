"""Processes that make learner ranks again and again: importing DeepSpeed takes longer than what is tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from funicular.actors.advantages.batch import KlScores
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.step_plan import StepPlan
from funicular.actors.types import GroupPayload, TeacherPayload
from funicular.actors.weights import Manifest, PublishedWeights

TEMPERATURE = 0.9


class Host:
    """One process that has a rank of a fixed world; made a Ray actor by `Hosts`."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._place = (rank, world_size)
        self._address: tuple[str, int] = ("", 0)
        self._learner: Any = None

    def find_address(self) -> tuple[str, int]:
        from funicular.cluster.rendezvous import free_address

        return free_address()

    def begin(
        self,
        address: tuple[str, int],
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        model: str,
        optimizer_steps: int | None,
        options: Mapping[str, Any],
    ) -> Any:
        """Replace the rank by one with this configuration."""
        from funicular.actors.learner import LearnerRank

        if self._learner is not None:
            self._learner.close()
        self._learner = LearnerRank(
            *self._place,
            config,
            algorithm,
            temperature=TEMPERATURE,
            model_folder=model,
            seed=0,
            optimizer_steps=optimizer_steps,
            **options,
        )
        return self._learner.start(*address)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the rank."""
        return getattr(self._learner, method)(*arguments)

    def run(self, function: Any, *arguments: Any) -> Any:
        """Call a function with the rank, None before `begin`."""
        return function(self._learner, *arguments)

    def pack(self, *arguments: Any) -> list[np.ndarray | Manifest]:
        """All that `pack_weights` yields."""
        return list(self._learner.pack_weights(*arguments))


class Hosts:
    """The hosts of one world size, called all at once. A single one has the machine's GPU, if there is any."""

    def __init__(self, world_size: int) -> None:
        environment = {"OMP_NUM_THREADS": "1"}
        gpus = int(world_size == 1 and torch.cuda.is_available())  # NCCL refuses two ranks on one
        actor = ray.remote(Host).options(num_cpus=1, num_gpus=gpus, runtime_env={"env_vars": environment})
        self._actors = [actor.remote(rank, world_size) for rank in range(world_size)]
        self._address = ray.get(self._actors[0].find_address.remote(), timeout=180)

    def begin(
        self,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        model: str,
        optimizer_steps: int | None = None,
        **options: Any,
    ) -> None:
        """Replace all ranks; `options` are further ones of LearnerRank."""
        self._each("begin", self._address, config, algorithm, model, optimizer_steps, options)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all ranks with the same arguments."""
        return self._each("call", method, *arguments)

    def run(self, function: Any, *arguments: Any) -> list[Any]:
        """Call a function in every host, with its rank of the learner and the same arguments."""
        return self._each("run", function, *arguments)

    def step(
        self,
        plan: StepPlan,
        payloads: Mapping[str, GroupPayload],
        teacher_payloads: Mapping[str, TeacherPayload] | None = None,
    ) -> dict[str, float]:
        """Fetch and train; the step's metrics."""
        self._fetch(plan, payloads, teacher_payloads)
        return self._train(plan)

    def score_and_step(
        self, scoring: StepPlan, payloads: Mapping[str, GroupPayload], plan: Callable[[KlScores], StepPlan]
    ) -> dict[str, float]:
        """Fetch, take the KL to the reference policy, plan with it and train; the step's metrics."""
        self._fetch(scoring, payloads)
        calls = [actor.call.remote("score", rank) for actor, rank in zip(self._actors, scoring.ranks, strict=True)]
        scores = ray.get(calls, timeout=180)
        return self._train(plan({row: score for of_rank in scores for row, score in of_rank.items()}))

    def _fetch(
        self,
        plan: StepPlan,
        payloads: Mapping[str, GroupPayload],
        teacher_payloads: Mapping[str, TeacherPayload] | None = None,
    ) -> None:
        refs = {group_id: [ray.put(payload)] for group_id, payload in payloads.items()}
        for group_id, said in (teacher_payloads or {}).items():
            refs[group_id].append(ray.put(said))
        fetches = [
            actor.call.remote("fetch", {group_id: refs[group_id] for group_id in rank.group_ids})
            for actor, rank in zip(self._actors, plan.ranks, strict=True)
        ]
        assert ray.get(fetches, timeout=60) == [()] * len(self._actors)

    def _train(self, plan: StepPlan) -> dict[str, float]:
        steps = [actor.call.remote("step", rank) for actor, rank in zip(self._actors, plan.ranks, strict=True)]
        results = ray.get(steps, timeout=180)
        assert all(result.metrics.keys() == results[0].metrics.keys() for result in results)
        return dict(results[0].metrics)

    def pack(
        self,
        *,
        version: int = 1,
        dtype: str = "float32",
        lora: str = "merged",
        on: tuple[Manifest, list] | None = None,
    ) -> tuple[dict[str, torch.Tensor], Manifest, list]:
        """The published tensors by name, read back from the buckets; the manifest; the buckets.

        Args:
            on: manifest and buckets that were published before.
        """
        base = PublishedWeights(manifest=on[0], buckets=()) if on else None
        first, *others = self._each("pack", version, dtype, 100_000, 4, 12, lora, base)
        assert not any(others)
        *buckets, manifest = first
        if on:
            buckets = [*on[1][: manifest.frozen_buckets], *buckets]
        tensors = {
            entry.name: torch.from_numpy(buckets[entry.bucket][entry.offset : entry.offset + entry.nbytes].copy())
            .view(getattr(torch, entry.dtype))
            .view(entry.shape)
            for entry in manifest.tensors
        }
        return tensors, manifest, buckets

    def _each(self, method: str, *arguments: Any) -> list[Any]:
        calls: Sequence[Any] = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return ray.get(calls, timeout=180)
