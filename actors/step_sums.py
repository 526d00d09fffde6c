"""Metrics of a step as sums and counts: added up over micro-batches, then over ranks, then divided once."""

from __future__ import annotations

import torch

from funicular.actors.collate import Batch
from funicular.actors.config import AlgorithmConfig

_SUMS = (
    "loss",
    "tokens",
    "entropy",
    "clipped_low",
    "clipped_high",
    "kl",
    "mismatch",
    "importance_weight",
    "capped",
)
_MAXIMA = ("ratio", "mismatch", "memory")
_GIB = 1 << 30


class StepSums:
    """Sums of one step. All values stay on the device until `metrics`."""

    def __init__(self, algorithm: AlgorithmConfig, device: torch.device) -> None:
        self._algorithm = algorithm
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._maxima = torch.full((len(_MAXIMA),), -torch.inf, dtype=torch.float64, device=device)
        self._nonfinite = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self,
        batch: Batch,
        *,
        loss: torch.Tensor,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        entropy: torch.Tensor,
        importance_weights: torch.Tensor | None,
        kl: torch.Tensor | None,
    ) -> None:
        """Add one micro-batch; all but `loss` are (N,)."""
        algorithm = self._algorithm
        ratio = torch.exp(logprobs - old_logprobs)
        mismatch = (old_logprobs - batch.generator_logprobs).abs()
        negative = batch.advantages < 0
        zeros = torch.zeros_like(ratio)
        weights = zeros if importance_weights is None else importance_weights
        cap = algorithm.importance_cap
        values = {
            "loss": loss,
            "tokens": torch.ones_like(ratio),
            "entropy": entropy,
            "clipped_low": (ratio < 1 - algorithm.epsilon_low) & negative,
            "clipped_high": (ratio > 1 + algorithm.epsilon_high) & (batch.advantages > 0),
            "kl": zeros if kl is None else kl,
            "mismatch": mismatch,
            "importance_weight": weights,
            "capped": zeros if cap is None else weights >= cap,
        }
        self._sums += torch.stack([values[name].double().sum() for name in _SUMS])
        self._maxima[0] = torch.maximum(self._maxima[0], ratio.max().double())
        self._maxima[1] = torch.maximum(self._maxima[1], mismatch.max().double())

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
        self._maxima[2] = peak_memory_bytes / _GIB
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
        out |= {
            "policy/entropy": sums["entropy"] / tokens,
            "policy/clip_frac_low": sums["clipped_low"] / tokens,
            "policy/clip_frac_high": sums["clipped_high"] / tokens,
            "policy/ratio_max": maxima["ratio"],
            "mismatch/logprob_abs_mean": sums["mismatch"] / tokens,
            "mismatch/logprob_abs_max": maxima["mismatch"],
        }
        if self._algorithm.importance_cap is not None:
            out["mismatch/importance_weight_mean"] = sums["importance_weight"] / tokens
            out["mismatch/capped_frac"] = sums["capped"] / tokens
        if self._algorithm.beta > 0:
            out["policy/kl_ref"] = sums["kl"] / tokens
        return out
