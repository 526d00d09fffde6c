"""The distillation term of one micro-batch, as a learner rank computes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from funicular.actors.collate import Batch
from funicular.actors.distillation_config import (
    DistillationConfig,
    distils,
    learns_given_tokens,
    reward_factor,
    teacher_scores_samples,
)
from funicular.actors.head import TeacherTarget
from funicular.actors.losses.reverse_kl import reverse_kl_advantages
from funicular.actors.rank_teacher import RankTeacher
from funicular.actors.step_sums import Distilled


class RankDistillation:
    """What this rank learns from a teacher; of a recipe without one, nothing.

    Args:
        teacher: the model in this rank; None: the loss needs none.
    """

    def __init__(self, config: DistillationConfig, teacher: RankTeacher | None) -> None:
        self.config = config
        self.active = distils(config)
        self._teacher = teacher

    @property
    def needs_policy_term(self) -> bool:
        """Whether advantages can be anything but 0."""
        return reward_factor(self.config) != 0 or teacher_scores_samples(self.config)

    def target(self, batch: Batch) -> AbstractContextManager[TeacherTarget | None]:
        """What the policy's pass is compared with, for its forward and backward; a collective under ZeRO-3."""
        return nullcontext() if self._teacher is None else self._teacher.target(batch)

    def sampled(self, batch: Batch, old_logprobs: torch.Tensor) -> Distilled | None:
        """From what teachers said of sampled tokens; its losses are taken from the advantages. None: no teacher did.

        Args:
            old_logprobs: (N,) of the policy that the loss takes for the one that sampled.
        """
        if batch.teacher_logprobs is None:
            return None
        advantages = reverse_kl_advantages(old_logprobs, batch.teacher_logprobs, self.config.coef)
        return Distilled(kl=old_logprobs.detach() - batch.teacher_logprobs, losses=-advantages)

    def compared(self, logprobs: torch.Tensor, divergences: Sequence[torch.Tensor]) -> Distilled | None:
        """What the output head's results give; its losses have a gradient. None: nothing.

        Args:
            logprobs: (N,) of the tokens.
            divergences: what came beside, if there was a target.
        """
        if learns_given_tokens(self.config):
            return Distilled(kl=None, losses=-self.config.coef * logprobs)
        if not divergences:
            return None
        jsd, kl = divergences
        return Distilled(kl=kl, losses=self.config.coef * jsd)
