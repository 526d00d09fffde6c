"""The learner group of a certificate: plans, fetches and steps are the real ones, its ranks stand in warm processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from funicular.actors.config import AlgorithmConfig, LearnerConfig, WeightSyncConfig
from funicular.actors.gradient_errors import GradientErrors
from funicular.actors.gradient_probe import ProbeSettings
from funicular.actors.learners import LearnerGroup
from funicular.actors.types import ScoredGroup
from funicular.rewards.config import RewardConfig

_ANSWER_S = 300.0
"""Within which hosts give up the memory of the rank they had, and answer."""


class ProbedLearners(LearnerGroup):
    """Args:
    hosts: one per rank; they outlive the group.
    """

    def __init__(
        self,
        hosts: Sequence[Any],
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        settings: ProbeSettings,
        *,
        max_completion_tokens: int,
        rewards: RewardConfig,
    ) -> None:
        super().__init__(
            config,
            algorithm,
            WeightSyncConfig(),
            wire_dtype="float32",
            temperature=settings.temperature,
            max_completion_tokens=max_completion_tokens,
            model_folder=settings.model_folder,
            seed=settings.seed,
            use_gpu=False,
            rewards=rewards,
        )
        self._hosts = list(hosts)
        self._begin = (config, algorithm, settings)
        self.shared = False
        """The step computed a prompt once for several completions."""

    @property
    def can_share(self) -> bool:
        """The ranks, once started, run over rows that share their prompts; not where the model cannot."""
        return self._shares_prompts

    async def errors(self, groups: Sequence[ScoredGroup]) -> GradientErrors:
        """Start the ranks, make the one step, and say how far its gradient is from the expected one.

        Raises:
            LearnerLost: a rank died, or missed a deadline.
            ValueError: no row has a gradient; or the model or its settings are not supported.
        """
        self._actors = self._hosts
        await self._all("hosts to begin", _ANSWER_S, "begin", *self._begin)
        await self.start()
        metrics = (await self.step(0, groups)).metrics
        self.shared = metrics["perf/pass_tokens"] < metrics["perf/pass_tokens_unshared"]
        found, *_ = await self._all("the comparison", _ANSWER_S, "errors")
        if found is None:
            raise ValueError("no row of the batch has a gradient, so there is nothing to compare")
        return found

    def _make_actor(self, rank: int) -> Any:
        return self._hosts[rank]
