"""Policy-gradient losses of tensors. Stable function: `loss_from_tensors` (docs/algorithms.md)."""

from __future__ import annotations

from typing import Literal

import torch

from funicular.actors.aggregation import Aggregation, Normaliser

KlEstimator = Literal["k3", "k3_unbiased"]


def policy_loss_terms(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
    importance_weights: torch.Tensor | None = None,
    reference_logprobs: torch.Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: KlEstimator = "k3",
) -> torch.Tensor:
    """Loss of each token: minus the weighted PPO-clip objective, plus beta times the KL estimate.

    With r = exp(logprobs - old_logprobs):

        -w min(min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) + beta kl

    PPO 1707.06347 eq. 7; GRPO 2402.03300 eq. 3; delta: INTELLECT-2 2505.07291; w: truncated importance
    sampling, on the policy term only.

    Args:
        logprobs: any shape, float32, of the current policy at the sampling temperature, with gradient. Every
            entry must be finite: mask padding before.
        old_logprobs: the same shape, of the policy before the first update of the step; detached here.
        advantages: the same shape, or one that broadcasts to it.
        importance_weights: the same shape, from `importance_weights_of`; None: 1.
        reference_logprobs: the same shape; needed when beta > 0.

    Raises:
        ValueError: beta > 0 without reference_logprobs, or delta <= 1 + epsilon_high.
    """
    if delta is not None and delta <= 1 + epsilon_high:
        raise ValueError(f"delta: got {delta}, expected more than 1 + epsilon_high = {1 + epsilon_high}")
    ratio = torch.exp(logprobs - old_logprobs.detach())
    capped = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    loss = -torch.minimum(capped * advantages, clipped * advantages)
    if importance_weights is not None:
        loss = loss * importance_weights.detach()
    if beta > 0:
        if reference_logprobs is None:
            raise ValueError(f"beta: got {beta} without reference_logprobs")
        loss = loss + beta * kl_terms(logprobs, reference_logprobs, ratio=ratio, kl_estimator=kl_estimator)
    return loss


def kl_terms(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    *,
    ratio: torch.Tensor,
    kl_estimator: KlEstimator,
) -> torch.Tensor:
    """KL estimate of each token: exp(d) - d - 1 with d = reference - policy (k3, Schulman; GRPO eq. 4).

    `k3_unbiased` multiplies it by the ratio, with gradient (DeepSeek-V3.2 2512.02556 eq. 7): then the
    expected gradient is that of KL(policy || reference), which plain k3 has only to first order.
    """
    difference = reference_logprobs.detach() - logprobs
    k3 = torch.exp(difference) - difference - 1
    return k3 * ratio if kl_estimator == "k3_unbiased" else k3


def importance_weights_of(old_logprobs: torch.Tensor, generator_logprobs: torch.Tensor, cap: float) -> torch.Tensor:
    """Truncated importance sampling: min(exp(old - generator), cap) of each token, detached."""
    return torch.exp(old_logprobs.detach() - generator_logprobs).clamp(max=cap)


def aggregation_weights(lengths: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """Coefficient of each token of each row in the optimizer batch's sum.

    Args:
        lengths: (B,) trained tokens of each row.
        normaliser: counts of the whole optimizer batch, which may have more rows than these.

    Returns:
        (B,) float64.
    """
    return torch.tensor(
        [normaliser.token_weight(int(n)) for n in lengths.tolist()],
        dtype=torch.float64,
        device=lengths.device,
    )


def loss_from_tensors(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    aggregation: Aggregation,
    rows: int | None = None,
    tokens: int | None = None,
    max_completion_tokens: int | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    reference_logprobs: torch.Tensor | None = None,
    generator_logprobs: torch.Tensor | None = None,
    importance_cap: float | None = None,
) -> torch.Tensor:
    """The loss of padded completions: these rows' part of an optimizer batch. Its signature is stable.

    Losses of parts of an optimizer batch, each with the whole batch's `rows` and `tokens`, add up to the loss
    of the whole; so do their gradients.

    Args:
        logprobs: (B, T) of the current policy at the sampling temperature, with gradient.
        old_logprobs: (B, T) of the policy before the step's first update.
        advantages: (B,), or (B, T).
        mask: (B, T); nonzero on trained tokens. What stands elsewhere is never read, not even NaN.
        aggregation: sequence (GRPO), token (DAPO, BNPO) or constant (Dr.GRPO); `Normaliser.token_weight`.
        rows: valid completions of the whole optimizer batch, empty ones included; None: B.
        tokens: trained tokens of the whole optimizer batch; None: those of the mask.
        max_completion_tokens: the configured limit; needed by `constant`.
        generator_logprobs: (B, T) what the generator reported; needed with importance_cap.
        importance_cap: cap of the truncated importance weight; None: no weight.

    Returns:
        Scalar. Connected to `logprobs`, and 0, when the mask is empty.

    Raises:
        ValueError: shapes differ, or an argument that the options need is missing.
    """
    for name, value in (("old_logprobs", old_logprobs), ("mask", mask)):
        if value.shape != logprobs.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(logprobs.shape)}")
    if aggregation == "constant" and max_completion_tokens is None:
        raise ValueError("aggregation constant needs max_completion_tokens, the configured limit")
    if importance_cap is not None and generator_logprobs is None:
        raise ValueError(f"importance_cap: got {importance_cap} without generator_logprobs")
    trained = mask != 0
    lengths = trained.sum(1)
    normaliser = Normaliser(
        aggregation=aggregation,
        rows=logprobs.shape[0] if rows is None else rows,
        tokens=int(lengths.sum()) if tokens is None else tokens,
        max_completion_tokens=max_completion_tokens or 0,
    )

    def kept(x: torch.Tensor) -> torch.Tensor:
        # Selected before exp: multiplying by the mask afterwards would turn a NaN or inf in padding into NaN.
        return torch.where(trained, x, torch.zeros((), dtype=x.dtype, device=x.device))

    logprobs, old_logprobs = kept(logprobs), kept(old_logprobs)
    weights = None
    if importance_cap is not None and generator_logprobs is not None:
        weights = importance_weights_of(old_logprobs, kept(generator_logprobs), importance_cap)
    terms = policy_loss_terms(
        logprobs,
        old_logprobs,
        advantages[:, None] if advantages.ndim == 1 else kept(advantages),
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        delta=delta,
        importance_weights=weights,
        reference_logprobs=None if reference_logprobs is None else kept(reference_logprobs),
        beta=beta,
        kl_estimator=kl_estimator,
    )
    omega = aggregation_weights(lengths, normaliser)[:, None].to(terms.dtype)
    return (kept(terms) * omega).sum()
