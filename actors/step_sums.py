"""Metrics of a step as sums and counts: added up over micro-batches, then over ranks, then divided once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from funicular.actors.collate import Batch
from funicular.actors.losses.settings import LossSettings
from funicular.actors.losses.token_losses import TokenLosses

_SUMS = (
    "loss",
    "tokens",
    "entropy",
    "clipped_low",
    "clipped_high",
    "beyond_delta",
    "beyond_cap",
    "ratio",
    "old_new_kl",
    "kl",
    "dropped",
    "in_policy_term",
    "mismatch",
    "mismatch_k1",
    "mismatch_k3",
    "weight",
    "weight_squared",
    "weight_capped",
    "weight_masked",
    "teacher_kl",
    "teacher_tokens",
    "generator_tokens",
    "distillation_loss",
)
_MAXIMA = ("ratio", "minus_ratio", "mismatch", "weight", "minus_weight", "memory")
"""Minima are the maxima of what is below zero."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What a micro-batch learns from a teacher."""

    kl: torch.Tensor | None
    """(N,) nats: KL of student to teacher at each token, or a sample of it; None: no teacher was asked."""
    losses: torch.Tensor
    """(N,) `coef` times what is minimised at each token."""


class StepSums:
    """Sums of one step. All values stay on the device until `metrics`.

    Args:
        distilled: there is a teacher.
    """

    def __init__(self, settings: LossSettings, device: torch.device, *, distilled: bool = False) -> None:
        self._settings = settings
        self._distilled = distilled
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._maxima = torch.full((len(_MAXIMA),), -torch.inf, dtype=torch.float64, device=device)
        self._nonfinite = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self,
        batch: Batch,
        terms: TokenLosses,
        *,
        loss: torch.Tensor,
        learner_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        entropy: torch.Tensor,
        in_policy_term: torch.Tensor | None,
        distilled: Distilled | None,
    ) -> None:
        """Add one micro-batch; tensors but `loss` are (N,).

        Args:
            learner_logprobs: before the step's first update, or now, where nobody asked for those.
        """
        settings, ratio, weights = self._settings, terms.ratio, terms.weights
        sampled = batch.generator_logprobs is not None
        difference = torch.zeros_like(ratio)
        if batch.generator_logprobs is not None:
            difference = learner_logprobs - batch.generator_logprobs
        mismatch = difference.abs()
        kl = None if distilled is None else distilled.kl
        negative, positive = advantages < 0, advantages > 0
        none = torch.zeros_like(ratio)
        moved = ratio.log() if settings.objective == "gmpo" else ratio - 1
        values = {
            "loss": loss,
            "tokens": torch.ones_like(ratio),
            "entropy": entropy,
            "clipped_low": (moved < -settings.epsilon_low) & negative,
            "clipped_high": (moved > settings.epsilon_high) & positive,
            "beyond_delta": none if settings.delta is None else (ratio > settings.delta) & negative,
            "beyond_cap": (ratio > settings.ratio_cap) & positive,
            "ratio": ratio,
            "old_new_kl": ratio - 1 - ratio.log(),
            "kl": none if terms.kl is None else terms.kl,
            "dropped": none if terms.kept is None else ~terms.kept,
            "in_policy_term": none if in_policy_term is None else in_policy_term,
            "mismatch": mismatch,
            "mismatch_k1": -difference,
            "mismatch_k3": difference.exp() - difference - 1,
            "weight": none if weights is None else weights,
            "weight_squared": none if weights is None else weights.square(),
            "weight_capped": none
            if weights is None or settings.importance_cap is None
            else weights >= settings.importance_cap,
            "weight_masked": none if weights is None else weights == 0,
            "teacher_kl": none if kl is None else kl,
            "teacher_tokens": none if kl is None else torch.ones_like(ratio),
            "generator_tokens": torch.ones_like(ratio) if sampled else none,
            "distillation_loss": none if distilled is None else distilled.losses.detach() * batch.token_weights,
        }
        self._sums += torch.stack([values[name].double().sum() for name in _SUMS])
        largest = [ratio.max(), -ratio.min(), mismatch.max()]
        largest += [] if weights is None else [weights.max(), -weights.min()]
        for index, value in enumerate(largest):
            self._maxima[index] = torch.maximum(self._maxima[index], value.double())

    @torch.no_grad()
    def check_finite(self, *values: torch.Tensor | None) -> None:
        """Count values that are not finite. Nothing is raised before all ranks have agreed."""
        for value in values:
            if value is not None:
                self._nonfinite += (~torch.isfinite(value)).sum()

    def nonfinite_on_all_ranks(self) -> int:
        """How many there are on all ranks together; a collective."""
        total = self._nonfinite.clone()
        torch.distributed.all_reduce(total)
        return int(total)

    def metrics(self, *, optimizer_batches: int, peak_memory_bytes: float) -> dict[str, float]:
        """Reduce over ranks and divide; a collective. What nothing was measured for has no entry."""
        self._maxima[_MAXIMA.index("memory")] = peak_memory_bytes / _GIB
        torch.distributed.all_reduce(self._sums)
        torch.distributed.all_reduce(self._maxima, op=torch.distributed.ReduceOp.MAX)
        sums = dict(zip(_SUMS, self._sums.tolist(), strict=True))
        maxima = dict(zip(_MAXIMA, self._maxima.tolist(), strict=True))
        tokens = sums["tokens"]
        out = {
            "policy/loss": sums["loss"] / optimizer_batches,
            "perf/learner_tokens": tokens,
            "perf/learner_memory_gib": maxima["memory"],
        }
        if tokens == 0:
            return out
        if self._distilled:
            out["distillation/loss"] = sums["distillation_loss"] / optimizer_batches
        if sums["teacher_tokens"]:
            out["distillation/kl"] = sums["teacher_kl"] / sums["teacher_tokens"]
        out |= self._of_policy(sums, maxima, tokens)
        return out | (self._of_mismatch(sums, maxima, tokens) if sums["generator_tokens"] else {})

    def _of_policy(self, sums: dict[str, float], maxima: dict[str, float], tokens: float) -> dict[str, float]:
        settings = self._settings
        out = {
            "policy/entropy": sums["entropy"] / tokens,
            "policy/ratio_mean": sums["ratio"] / tokens,
            "policy/ratio_max": maxima["ratio"],
            "policy/ratio_min": -maxima["minus_ratio"],
            "policy/kl_old": sums["old_new_kl"] / tokens,
        }
        if settings.objective in ("ppo_clip", "gmpo"):
            out["policy/clip_frac_low"] = sums["clipped_low"] / tokens
            out["policy/clip_frac_high"] = sums["clipped_high"] / tokens
        if settings.objective == "ppo_clip" and settings.delta is not None:
            out["policy/delta_frac"] = sums["beyond_delta"] / tokens
        if settings.objective == "cispo":
            out["policy/ratio_capped_frac"] = sums["beyond_cap"] / tokens
        if settings.off_policy_threshold is not None:
            out["policy/off_policy_dropped_frac"] = sums["dropped"] / tokens
        if sums["in_policy_term"]:
            out["policy/top_entropy_frac"] = sums["in_policy_term"] / tokens
        if settings.beta > 0:
            out["policy/kl_ref"] = sums["kl"] / tokens
        return out

    def _of_mismatch(self, sums: dict[str, float], maxima: dict[str, float], tokens: float) -> dict[str, float]:
        out = {
            "mismatch/logprob_abs_mean": sums["mismatch"] / tokens,
            "mismatch/logprob_abs_max": maxima["mismatch"],
            "mismatch/kl_k1": sums["mismatch_k1"] / tokens,
            "mismatch/kl_k3": sums["mismatch_k3"] / tokens,
        }
        if self._settings.importance_correction == "none":
            return out
        out |= {
            "mismatch/importance_weight_mean": sums["weight"] / tokens,
            "mismatch/importance_weight_min": -maxima["minus_weight"],
            "mismatch/importance_weight_max": maxima["weight"],
            "mismatch/capped_frac": sums["weight_capped"] / tokens,
            "mismatch/masked_frac": sums["weight_masked"] / tokens,
        }
        if sums["weight_squared"] > 0:
            # effective sample size over the number of tokens: (sum w)^2 / (N sum w^2)
            out["mismatch/effective_frac"] = sums["weight"] ** 2 / (tokens * sums["weight_squared"])
        return out
