"""Learning rates over optimizer steps, as a pure function of the step: a resumed run needs the step alone."""

from __future__ import annotations

import math

import torch

from funicular.actors.config import LearnerConfig


def learning_rate_factor(config: LearnerConfig, step: int, total_steps: int | None) -> float:
    """What `learning_rate` is multiplied by in one optimizer step.

    With w = warmup_steps and d = decay_steps, or total_steps - w if that is 0 or more: (step + 1) / w in the first w
    steps; then 1; in the last d, with x from 0 towards 1 and m = min_lr_ratio: m + (1 - m) (1 - x) for `linear`,
    m + (1 - m) (1 + cos(pi x)) / 2 for `cosine`. m after the last. The first step is above 0 and the last above m,
    because a step with rate 0 would cost a batch and change nothing.

    Args:
        step: optimizer steps made before this one.
        total_steps: optimizer steps of the whole run; None is enough for `constant`.

    Raises:
        ValueError: a schedule that decays without total_steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if total_steps is None:
        raise ValueError(f"learner.schedule: {config.schedule} ends with the run, whose number of steps is not known")
    longest = max(1, total_steps - config.warmup_steps)
    decay = min(config.decay_steps or longest, longest)
    x = min(1.0, max(0.0, (step - (total_steps - decay)) / decay))
    shape = 1 - x if config.schedule == "linear" else (1 + math.cos(math.pi * x)) / 2
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape


def make_schedule(
    optimizer: torch.optim.Optimizer, config: LearnerConfig, total_steps: int | None
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule for an optimizer; its `state_dict` is what a checkpoint keeps of it."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, total_steps))
