"""The distillation term of one micro-batch, as a learner rank computes it."""

from __future__ import annotations

import torch

from funicular.actors.collate import Batch
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.losses.reverse_kl import reverse_kl_advantages
from funicular.actors.step_sums import Distilled


def sampled_term(batch: Batch, old_logprobs: torch.Tensor, config: DistillationConfig) -> Distilled | None:
    """From what teachers said of sampled tokens; its losses are taken from the advantages. None: no teacher scored.

    Args:
        old_logprobs: (N,) of the policy that the loss takes for the one that sampled.
    """
    if batch.teacher_logprobs is None:
        return None
    advantages = reverse_kl_advantages(old_logprobs, batch.teacher_logprobs, config.coef)
    return Distilled(kl=old_logprobs.detach() - batch.teacher_logprobs, losses=-advantages)
