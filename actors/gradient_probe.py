"""A learner whose gradients are read before they are applied, and whose updates change nothing.

`ProbedRank` is the real rank, with the real DeepSpeed: only its learning rate is 0. `ProbeHost` is a process that makes
such ranks again and again, because importing DeepSpeed takes longer than a step. `ProbedLearners` is the real group.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from funicular.actors import deepspeed_engine
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.drift import drift
from funicular.actors.gradient_errors import GradientComparison, GradientErrors
from funicular.actors.learner import LearnerRank
from funicular.actors.logit_tiles import Tiling
from funicular.actors.policy import PolicyModel
from funicular.actors.step_plan import RankPlan
from funicular.actors.tensor_file import TensorFile
from funicular.actors.types import KlScore, StepResult

_SMALL_TILES = Tiling(tokens=16, vocabulary=1000, kept_bytes=0)
"""Several tiles of tokens and words, none of which divides anything, and logits computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """What a probed rank needs besides what every rank does."""

    temperature: float
    model_folder: str
    seed: int
    expected: str
    """File with the gradient to compare with."""
    small_tiles: bool = False
    """Compute the output head in many small tiles."""


class ProbedRank(LearnerRank):
    """A rank that compares the gradient of its optimizer batch with a file's, before it is clipped and applied.

    The policy drifts before the engine is made, so that it differs from its reference policy; see `drift`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        settings: ProbeSettings,
    ) -> None:
        super().__init__(
            rank,
            world_size,
            without_updates(config),
            algorithm,
            temperature=settings.temperature,
            model_folder=settings.model_folder,
            seed=settings.seed,
        )
        self._probe = settings
        self.errors: GradientErrors | None = None
        """On rank 0, after a step."""

    def _make_engine(self, policy: PolicyModel) -> Any:
        drift(policy.causal_lm, self._probe.seed)
        if self._probe.small_tiles:
            policy.head.tiling = _SMALL_TILES
        engine = super()._make_engine(policy)
        update = engine.step

        def compare_and_update() -> None:
            self._compare()
            update()

        engine.step = compare_and_update  # where every way to apply gradients leads
        return engine

    def _compare(self) -> None:
        """A collective."""
        comparison = GradientComparison(TensorFile(Path(self._probe.expected)))
        for name, parameter in self._causal_lm.named_parameters():
            if not parameter.requires_grad:
                continue
            gradient = deepspeed_engine.whole_gradient(self._engine, parameter)
            if self._rank == 0:
                comparison.add(name, gradient)
        if self._rank == 0:
            self.errors = comparison.result()


def without_updates(config: LearnerConfig) -> LearnerConfig:
    """The same learner with an optimizer that keeps no state and moves nothing: gradients do not depend on it."""
    return replace(
        config,
        optimizer="sgd",
        momentum=None,
        learning_rate=0.0,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
    )


class ProbeHost:
    """One process that has a rank of a world of a fixed size. Stands where a rank's actor does.

    Args:
        rank_class: ProbedRank, or a faulty one.
    """

    def __init__(self, rank: int, world_size: int, rank_class: type[ProbedRank] = ProbedRank) -> None:
        self._place = (rank, world_size)
        self._rank_class = rank_class
        self._learner: ProbedRank | None = None

    def begin(self, config: LearnerConfig, algorithm: AlgorithmConfig, settings: ProbeSettings) -> None:
        """Replace the rank by one with this configuration, not started yet."""
        if self._learner is not None:
            self._learner.close()
        self._learner = None
        gc.collect()
        self._learner = self._rank_class(*self._place, config, algorithm, settings)

    def rendezvous(self) -> tuple[str, int]:
        return self._current.rendezvous()

    def start(self, host: str, port: int) -> dict[str, Any]:
        return self._current.start(host, port)

    def fetch(self, payload_refs: Mapping[str, list[Any]]) -> tuple[str, ...]:
        return self._current.fetch(payload_refs)

    def score(self, plan: RankPlan) -> dict[tuple[str, int], KlScore]:
        return self._current.score(plan)

    def step(self, plan: RankPlan) -> StepResult:
        return self._current.step(plan)

    def errors(self) -> GradientErrors | None:
        """Of the last step; None on all ranks but the first, and where no row has a gradient."""
        return self._current.errors

    @property
    def _current(self) -> ProbedRank:
        if self._learner is None:
            raise RuntimeError("a rank was called before `begin`")
        return self._learner


def probe_hosts(world_size: int, rank_class: type[ProbedRank] = ProbedRank) -> list[Any]:
    """Handles of new hosts, one per rank, on CPU."""
    # Ray hides no GPU from an actor that asks for none.
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    actor = ray.remote(ProbeHost).options(
        num_cpus=1, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": environment}
    )
    return [actor.remote(rank, world_size, rank_class) for rank in range(world_size)]
