"""The loss of padded completions. Stable function: `loss_from_tensors` (docs/algorithms.md)."""

from __future__ import annotations

import torch

from funicular.actors.aggregation import Normaliser
from funicular.actors.losses.entropy import entropy_threshold_of
from funicular.actors.losses.segments import Segments
from funicular.actors.losses.settings import (
    Aggregation,
    ImportanceCorrection,
    KlEstimator,
    LossSettings,
    Objective,
    RatioLevel,
)
from funicular.actors.losses.token_losses import LossInputs, token_losses


def loss_from_tensors(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
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
    objective: Objective = "ppo_clip",
    ratio_level: RatioLevel = "token",
    ratio_cap: float = 5.0,
    sapo_tau_positive: float = 1.0,
    sapo_tau_negative: float = 1.05,
    vespo_k_positive: float = 2.0,
    vespo_lambda_positive: float = 3.0,
    vespo_k_negative: float = 3.0,
    vespo_lambda_negative: float = 2.0,
    importance_correction: ImportanceCorrection | None = None,
    importance_floor: float | None = None,
    geometric_floor: float = 0.999,
    geometric_cap: float = 1.001,
    off_policy_threshold: float | None = None,
    groups: torch.Tensor | None = None,
    group_count: int | None = None,
    group_tokens: torch.Tensor | None = None,
    entropies: torch.Tensor | None = None,
    entropy_coef: float = 0.0,
    entropy_tokens: int | None = None,
    top_entropy_quantile: float = 1.0,
    entropy_threshold: float | None = None,
) -> torch.Tensor:
    """The loss of padded completions: these rows' part of an optimizer batch. Its signature is stable.

    Losses of parts of an optimizer batch, each with the whole batch's counts, add up to the loss of the whole; so do
    their gradients. Parts consist of whole rows.

    Args:
        logprobs: (B, T) of the current policy at the sampling temperature, with gradient.
        old_logprobs: (B, T) of the policy before the step's first update. None: the generator's stand in for them
            (bypass), and where those are NaN the current ones, without gradient.
        advantages: (B,), or (B, T).
        mask: (B, T); nonzero on trained tokens. What stands elsewhere is never read, not even NaN.
        aggregation: see `Normaliser.token_weight`.
        rows: valid completions of the whole optimizer batch, empty ones included; None: B.
        tokens: trained tokens of the whole optimizer batch; None: those of the mask.
        max_completion_tokens: the configured limit; needed by `constant`.
        reference_logprobs: (B, T); needed where beta > 0.
        generator_logprobs: (B, T) what the generator reported, NaN where it reported nothing; needed by a correction.
        importance_correction: None: `token_truncate` where importance_cap is given, else none.
        groups: (B,) group of each row, any integers; needed by `prompt`.
        group_count: groups of the whole optimizer batch; None: those in `groups`.
        group_tokens: (B,) trained tokens of each row's group in the whole optimizer batch; None: those of the mask.
        entropies: (B, T), with gradient for a bonus; needed where entropy_coef > 0 or top_entropy_quantile < 1.
        entropy_tokens: tokens that the bonus is a mean over, in the whole optimizer batch; None: those of this part.
        top_entropy_quantile: part of the tokens, those of highest entropy, that stays in the policy term and in the
            bonus.
        entropy_threshold: entropy from which a token belongs to it, over the whole optimizer batch; None: of this part.

    Other arguments: `LossSettings`, docs/algorithms.md.

    Returns:
        Scalar of `logprobs`' type; the arithmetic is float64. Connected to `logprobs`, and 0, when the mask is empty.

    Raises:
        ValueError: shapes differ, settings contradict each other, or an argument that they need is missing.
    """
    if importance_correction is None:
        importance_correction = "none" if importance_cap is None else "token_truncate"
    settings = LossSettings(
        objective=objective,
        ratio_level=ratio_level,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        delta=delta,
        ratio_cap=ratio_cap,
        sapo_tau_positive=sapo_tau_positive,
        sapo_tau_negative=sapo_tau_negative,
        vespo_k_positive=vespo_k_positive,
        vespo_lambda_positive=vespo_lambda_positive,
        vespo_k_negative=vespo_k_negative,
        vespo_lambda_negative=vespo_lambda_negative,
        beta=beta,
        kl_estimator=kl_estimator,
        importance_correction=importance_correction,
        importance_cap=importance_cap,
        importance_floor=importance_floor,
        geometric_floor=geometric_floor,
        geometric_cap=geometric_cap,
        off_policy_threshold=off_policy_threshold,
    )
    settings.check()
    for name, tensor in (
        ("old_logprobs", old_logprobs),
        ("mask", mask),
        ("reference_logprobs", reference_logprobs),
        ("generator_logprobs", generator_logprobs),
        ("entropies", entropies),
    ):
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(logprobs.shape)}")
    _check_rows(logprobs, advantages, groups, group_tokens)
    for name, weight in (("beta", beta), ("entropy_coef", entropy_coef)):
        if weight < 0:
            raise ValueError(f"{name}: got {weight}, expected at least 0")
    if not 0 < top_entropy_quantile <= 1:
        raise ValueError(f"top_entropy_quantile: got {top_entropy_quantile}, expected above 0, and at most 1")
    if entropies is None and (entropy_coef > 0 or top_entropy_quantile < 1):
        raise ValueError("entropy_coef and top_entropy_quantile need entropies")
    trained = mask != 0

    def flat(x: torch.Tensor) -> torch.Tensor:
        # Selected, not multiplied by the mask: NaN or inf in padding times 0 would be NaN.
        return x[trained]

    lengths = trained.sum(1)
    segments = Segments.of_lengths(lengths)
    current = flat(logprobs)
    generator = None if generator_logprobs is None else flat(generator_logprobs)
    old = _bypass(current, generator) if old_logprobs is None else flat(old_logprobs)
    in_policy_term = None
    flat_entropies = None if entropies is None else flat(entropies)
    if flat_entropies is not None and top_entropy_quantile < 1:
        if entropy_threshold is None:
            entropy_threshold = entropy_threshold_of(flat_entropies, top_entropy_quantile)
        in_policy_term = flat_entropies.detach() >= entropy_threshold
    terms = token_losses(
        LossInputs(
            logprobs=current,
            old_logprobs=old,
            advantages=segments.spread(advantages) if advantages.ndim == 1 else flat(advantages),
            segments=segments,
            generator_logprobs=generator,
            reference_logprobs=None if reference_logprobs is None else flat(reference_logprobs),
            in_policy_term=in_policy_term,
        ),
        settings,
    )
    weights_R = _row_weights(
        lengths, aggregation, rows, tokens, max_completion_tokens, groups, group_count, group_tokens
    )
    loss = (terms.losses * segments.spread(weights_R)).sum()
    if entropy_coef > 0 and flat_entropies is not None:
        counted = flat_entropies if in_policy_term is None else flat_entropies[in_policy_term]
        loss = loss - entropy_coef * counted.double().sum() / max(
            1, counted.numel() if entropy_tokens is None else entropy_tokens
        )
    return loss.to(logprobs.dtype)


def _bypass(logprobs: torch.Tensor, generator_logprobs: torch.Tensor | None) -> torch.Tensor:
    if generator_logprobs is None:
        raise ValueError("old_logprobs: got None, which needs generator_logprobs to stand in for them")
    return torch.where(torch.isnan(generator_logprobs), logprobs.detach(), generator_logprobs)


def _check_rows(
    logprobs: torch.Tensor, advantages: torch.Tensor, groups: torch.Tensor | None, group_tokens: torch.Tensor | None
) -> None:
    rows = logprobs.shape[:1]
    if advantages.shape not in (rows, logprobs.shape):
        expected = f"{tuple(rows)} or {tuple(logprobs.shape)}"
        raise ValueError(f"advantages: got shape {tuple(advantages.shape)}, expected {expected}")
    for name, value in (("groups", groups), ("group_tokens", group_tokens)):
        if value is not None and value.shape != rows:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(rows)}")


def _row_weights(
    lengths: torch.Tensor,
    aggregation: Aggregation,
    rows: int | None,
    tokens: int | None,
    max_completion_tokens: int | None,
    groups: torch.Tensor | None,
    group_count: int | None,
    group_tokens: torch.Tensor | None,
) -> torch.Tensor:
    """(B,) float64: coefficient of each token of each row in the optimizer batch's sum."""
    if aggregation == "constant" and max_completion_tokens is None:
        raise ValueError("aggregation constant needs max_completion_tokens, the configured limit")
    if aggregation == "prompt" and groups is None:
        raise ValueError("aggregation prompt needs groups, the group of each row")
    lengths_B = lengths.tolist()
    group_tokens_B, distinct = list(lengths_B), len(lengths_B)
    if groups is not None:
        _, index = torch.unique(groups, return_inverse=True)
        distinct = int(index.max()) + 1 if len(index) else 0
        sums = torch.zeros(distinct, dtype=lengths.dtype, device=lengths.device).index_add(0, index, lengths)
        group_tokens_B = sums[index].tolist()
    if group_tokens is not None:
        group_tokens_B = [int(n) for n in group_tokens.tolist()]
    normaliser = Normaliser(
        aggregation=aggregation,
        rows=len(lengths_B) if rows is None else rows,
        tokens=sum(lengths_B) if tokens is None else tokens,
        groups=distinct if group_count is None else group_count,
        max_completion_tokens=max_completion_tokens or 0,
    )
    weights = [normaliser.token_weight(n, of_group) for n, of_group in zip(lengths_B, group_tokens_B, strict=True)]
    return torch.tensor(weights, dtype=torch.float64, device=lengths.device)
