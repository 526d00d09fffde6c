"""The loss of each trained token: objective, masks, weights and KL put together. Both the learner and the stable
`loss_from_tensors` compute it here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from funicular.actors.losses.cispo import cispo
from funicular.actors.losses.corrections import importance_weights, off_policy_keep
from funicular.actors.losses.gmpo import gmpo
from funicular.actors.losses.kl import kl_terms
from funicular.actors.losses.ppo_clip import ppo_clip
from funicular.actors.losses.ratios import importance_ratio
from funicular.actors.losses.sapo import sapo
from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import LossSettings
from funicular.actors.losses.vespo import vespo


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """N trained tokens of R completions, without padding; all log-probabilities at the sampling temperature."""

    logprobs: torch.Tensor
    """(N,) of the current policy, with gradient."""
    old_logprobs: torch.Tensor
    """(N,) of the policy before the step's first update, or the generator's (bypass)."""
    advantages: torch.Tensor
    """(N,)."""
    segments: Segments
    generator_logprobs: torch.Tensor | None = None
    """(N,) what the generator reported; needed by a correction, may hold NaN."""
    reference_logprobs: torch.Tensor | None = None
    """(N,); needed where beta is not 0."""
    in_policy_term: torch.Tensor | None = None
    """(N,) bool: the tokens of highest entropy; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """What `token_losses` computed; all (N,), numbers in float64."""

    losses: torch.Tensor
    """With gradient."""
    ratio: torch.Tensor
    """Importance ratio before any clamp, detached."""
    weights: torch.Tensor | None
    """Importance weights; None: no correction."""
    kept: torch.Tensor | None
    """bool, of the off-policy sequence mask; None: there is none."""
    kl: torch.Tensor | None
    """Detached; None: beta is 0."""


def token_losses(inputs: LossInputs, settings: LossSettings) -> TokenLosses:
    """- J keep e w + beta kl of each token.

    J is the objective, keep the off-policy sequence mask, e the mask of highest entropies, w the importance weight.
    KL is multiplied by none of them. The arithmetic is float64: differences of close numbers (e^d - d - 1 near the
    reference, sums over long completions) would lose digits, and products of ratios would overflow, in float32.

    Raises:
        ValueError: a tensor that the settings need is missing.
    """
    inputs = _in_float64(inputs)
    old = inputs.old_logprobs.detach()
    generator = inputs.generator_logprobs
    if settings.importance_correction != "none" and generator is None:
        raise ValueError(f"importance_correction: got {settings.importance_correction} without generator_logprobs")
    weights = None if generator is None else importance_weights(old, generator, inputs.segments, settings)
    ratio = importance_ratio(inputs.logprobs, old, inputs.segments, settings.ratio_level)
    objective = _objective(inputs, old, ratio, weights, settings)
    kept = None
    if settings.off_policy_threshold is not None:
        behaviour = old if generator is None else generator
        kept = off_policy_keep(
            inputs.logprobs, behaviour, inputs.advantages, inputs.segments, settings.off_policy_threshold
        )
        objective = objective * kept
    if inputs.in_policy_term is not None:
        objective = objective * inputs.in_policy_term
    if weights is not None and settings.objective != "vespo":
        objective = objective * weights
    losses, kl = -objective, None
    if settings.beta > 0:
        if inputs.reference_logprobs is None:
            raise ValueError(f"beta: got {settings.beta} without reference_logprobs")
        kl = kl_terms(inputs.logprobs, inputs.reference_logprobs, ratio=ratio, kl_estimator=settings.kl_estimator)
        losses = losses + settings.beta * kl
        kl = kl.detach()
    return TokenLosses(losses=losses, ratio=ratio.detach(), weights=weights, kept=kept, kl=kl)


def _in_float64(inputs: LossInputs) -> LossInputs:
    generator, reference = inputs.generator_logprobs, inputs.reference_logprobs
    return replace(
        inputs,
        logprobs=inputs.logprobs.double(),
        old_logprobs=inputs.old_logprobs.double(),
        advantages=inputs.advantages.double(),
        generator_logprobs=None if generator is None else generator.double(),
        reference_logprobs=None if reference is None else reference.double(),
    )


def _objective(
    inputs: LossInputs, old: torch.Tensor, ratio: torch.Tensor, weights: torch.Tensor | None, settings: LossSettings
) -> torch.Tensor:
    logprobs, advantages = inputs.logprobs, inputs.advantages
    if settings.objective == "ppo_clip":
        return ppo_clip(
            ratio,
            advantages,
            epsilon_low=settings.epsilon_low,
            epsilon_high=settings.epsilon_high,
            delta=settings.delta,
        )
    if settings.objective == "cispo":
        return cispo(ratio, logprobs, advantages, cap=settings.ratio_cap)
    if settings.objective == "sapo":
        return sapo(ratio, advantages, tau_positive=settings.sapo_tau_positive, tau_negative=settings.sapo_tau_negative)
    if settings.objective == "vespo":
        return vespo(
            logprobs,
            old,
            advantages,
            inputs.segments,
            k_positive=settings.vespo_k_positive,
            lambda_positive=settings.vespo_lambda_positive,
            k_negative=settings.vespo_k_negative,
            lambda_negative=settings.vespo_lambda_negative,
            importance_weights=weights,
        )
    if settings.objective == "gmpo":
        return gmpo(
            logprobs,
            old,
            advantages,
            inputs.segments,
            epsilon_low=settings.epsilon_low,
            epsilon_high=settings.epsilon_high,
        )
    return advantages * logprobs  # REINFORCE, with a baseline or without
