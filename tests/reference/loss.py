"""The loss of padded rows, by loops: - J keep e w + beta kl, weighted and summed, minus the entropy term.

The keywords are those of `funicular.actors.loss.loss_from_tensors`, so that a test can give both the same.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.reference import corrections, objectives
from tests.reference.aggregation import token_weight
from tests.reference.complex_step import gradient
from tests.reference.entropy import quantile
from tests.reference.kl import kl
from tests.reference.ratios import ratios

Padded = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    value: float
    # The sum of the terms' absolute values: what rounding errors of `value` are relative to.
    magnitude: float
    # (B, T): by logprobs.
    gradient: list[list[float]]
    # (B, T): by entropies.
    entropy_gradient: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One completion's trained tokens; what lies outside the mask is gone."""

    lp_T: list[float]
    old_T: list[float]
    generator_T: list[float] | None
    reference_T: list[float] | None
    advantage_T: list[float]
    # The top-entropy mask e.
    e_T: list[float]


def factors(row: Row, s: dict[str, Any]) -> tuple[list[float], list[float]]:
    """w and keep e of each trained token: what has no derivative."""
    n = len(row.lp_T)
    w_T = [1.0] * n
    if s["importance_correction"] != "none":
        assert row.generator_T is not None
        bounds = [s[name] for name in ("importance_floor", "importance_cap", "geometric_floor", "geometric_cap")]
        w_T = corrections.correction_weights(s["importance_correction"], row.old_T, row.generator_T, *bounds)
    keep_T = [1.0] * n
    if s["off_policy_threshold"] is not None:
        behaviour_T = row.old_T if row.generator_T is None else row.generator_T
        keep_T = corrections.keep(row.advantage_T, behaviour_T, row.lp_T, s["off_policy_threshold"])
    return w_T, [keep * e for keep, e in zip(keep_T, row.e_T, strict=True)]


def token_losses(
    row: Row, lp_T: Sequence[complex], w_T: list[float], masks_T: list[float], s: dict[str, Any]
) -> list[complex]:
    """- J keep e w + beta kl of each trained token, with `lp_T` in the place of the row's own."""
    r_T = ratios(s["ratio_level"], lp_T, row.old_T)
    J_T = policy_objective(row, lp_T, r_T, w_T, s)
    if s["objective"] != "vespo":  # there the correction is inside W
        J_T = [J * w for J, w in zip(J_T, w_T, strict=True)]
    losses = [-J * m for J, m in zip(J_T, masks_T, strict=True)]
    if s["beta"] != 0.0:
        assert row.reference_T is not None
        kl_T = [kl(s["kl_estimator"], *of) for of in zip(lp_T, row.reference_T, r_T, strict=True)]
        losses = [loss + s["beta"] * k for loss, k in zip(losses, kl_T, strict=True)]
    return losses


def policy_objective(
    row: Row, lp_T: Sequence[complex], r_T: list[complex], w_T: list[float], s: dict[str, Any]
) -> list[complex]:
    A_T = row.advantage_T
    if s["objective"] == "ppo_clip":
        return objectives.ppo_clip(r_T, A_T, s["epsilon_low"], s["epsilon_high"], s["delta"])
    if s["objective"] == "cispo":
        return objectives.cispo(r_T, lp_T, A_T, s["ratio_cap"])
    if s["objective"] == "sapo":
        return objectives.sapo(r_T, A_T, s["sapo_tau_positive"], s["sapo_tau_negative"])
    if s["objective"] == "vespo":
        positive = (s["vespo_k_positive"], s["vespo_lambda_positive"])
        negative = (s["vespo_k_negative"], s["vespo_lambda_negative"])
        return objectives.vespo(lp_T, row.old_T, A_T, w_T, positive, negative)
    if s["objective"] == "gmpo":
        return objectives.gmpo(lp_T, row.old_T, A_T, s["epsilon_low"], s["epsilon_high"])
    if s["objective"] == "reinforce":
        return objectives.reinforce(lp_T, A_T)
    raise ValueError(s["objective"])


DEFAULTS: dict[str, Any] = {
    "rows": None, "tokens": None, "max_completion_tokens": None,
    "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": None,
    "beta": 0.0, "kl_estimator": "k3", "reference_logprobs": None,
    "generator_logprobs": None, "importance_cap": None,
    "objective": "ppo_clip", "ratio_level": "token", "ratio_cap": 5.0,
    "sapo_tau_positive": 1.0, "sapo_tau_negative": 1.05,
    "vespo_k_positive": 2.0, "vespo_lambda_positive": 3.0, "vespo_k_negative": 3.0, "vespo_lambda_negative": 2.0,
    "importance_correction": None, "importance_floor": None, "geometric_floor": 0.999, "geometric_cap": 1.001,
    "off_policy_threshold": None,
    "groups": None, "group_count": None, "group_tokens": None,
    "entropies": None, "entropy_coef": 0.0, "entropy_tokens": None,
    "top_entropy_quantile": 1.0, "entropy_threshold": None,
}  # fmt: skip


def padded_loss(
    logprobs: Padded,
    old_logprobs: Padded | None,
    advantages: Sequence[Any],
    mask: Padded,
    *,
    aggregation: str,
    **keywords: Any,
) -> Loss:
    """All arguments as `loss_from_tensors` takes them, as nested lists of float64."""
    unknown = keywords.keys() - DEFAULTS.keys()
    assert not unknown, unknown
    s = DEFAULTS | keywords
    if s["importance_correction"] is None:
        s["importance_correction"] = "none" if s["importance_cap"] is None else "token_truncate"
    trained = [[t for t, m in enumerate(mask_T) if m] for mask_T in mask]
    e = _top_entropy_mask(trained, s)
    weights = _row_weights(aggregation, trained, s)

    value, magnitude = 0.0, 0.0
    slope = [[0.0] * len(mask_T) for mask_T in mask]
    for i, places in enumerate(trained):
        if not places:
            continue
        row = _row(i, places, logprobs, old_logprobs, advantages, e, s)
        constants = factors(row, s)
        for loss in token_losses(row, [complex(x) for x in row.lp_T], *constants, s):
            value += weights[i] * loss.real
            magnitude += weights[i] * abs(loss.real)

        def of_row(lp_T: list[complex], row: Row = row, constants: Any = constants) -> complex:
            return sum(token_losses(row, lp_T, *constants, s), 0j)

        slopes = gradient(of_row, row.lp_T)
        for t, derivative in zip(places, slopes, strict=True):
            slope[i][t] = weights[i] * derivative

    bonus, entropy_slope = _entropy_term(trained, e, mask, s)
    return Loss(value=value - bonus, magnitude=magnitude + abs(bonus), gradient=slope, entropy_gradient=entropy_slope)


def _row(
    i: int,
    places: list[int],
    logprobs: Padded,
    old_logprobs: Padded | None,
    advantages: Sequence[Any],
    e: list[dict[int, float]],
    s: dict[str, Any],
) -> Row:
    def of(padded: Padded | None) -> list[float] | None:
        return None if padded is None else [float(padded[i][t]) for t in places]

    lp_T = of(logprobs)
    assert lp_T is not None
    generator_T, old_T = of(s["generator_logprobs"]), of(old_logprobs)
    if old_T is None:  # bypass: a NaN has the ratio 1
        assert generator_T is not None
        old_T = [lp if math.isnan(g) else g for g, lp in zip(generator_T, lp_T, strict=True)]
    try:
        advantage_T = [float(advantages[i][t]) for t in places]
    except (TypeError, IndexError):
        advantage_T = [float(advantages[i])] * len(places)
    return Row(
        lp_T=lp_T,
        old_T=old_T,
        generator_T=generator_T,
        reference_T=of(s["reference_logprobs"]),
        advantage_T=advantage_T,
        e_T=[e[i][t] for t in places],
    )


def _top_entropy_mask(trained: list[list[int]], s: dict[str, Any]) -> list[dict[int, float]]:
    """e of each trained token: 1 where its entropy reaches the (1 - quantile) quantile of all trained tokens."""
    if s["top_entropy_quantile"] == 1.0:
        return [dict.fromkeys(places, 1.0) for places in trained]
    entropies = s["entropies"]
    threshold = s["entropy_threshold"]
    if threshold is None:
        of_all = [float(entropies[i][t]) for i, places in enumerate(trained) for t in places]
        threshold = quantile(of_all, 1 - s["top_entropy_quantile"]) if of_all else 0.0
    return [
        {t: 1.0 if float(entropies[i][t]) >= threshold else 0.0 for t in places} for i, places in enumerate(trained)
    ]


def _row_weights(aggregation: str, trained: list[list[int]], s: dict[str, Any]) -> list[float]:
    n_B = [len(places) for places in trained]
    rows = len(n_B) if s["rows"] is None else s["rows"]
    tokens = sum(n_B) if s["tokens"] is None else s["tokens"]
    group_tokens, group_count = s["group_tokens"], s["group_count"]
    if aggregation == "prompt":
        groups = [int(g) for g in s["groups"]]
        if group_count is None:
            group_count = len(set(groups))
        if group_tokens is None:
            of_group: Counter[int] = Counter()
            for g, n in zip(groups, n_B, strict=True):
                of_group[g] += n
            group_tokens = [of_group[g] for g in groups]
    return [
        0.0
        if n == 0
        else token_weight(
            aggregation,
            n,
            rows=rows,
            tokens=tokens,
            max_completion_tokens=s["max_completion_tokens"],
            group_count=group_count,
            tokens_of_group=None if group_tokens is None else float(group_tokens[i]),
        )
        for i, n in enumerate(n_B)
    ]


def _entropy_term(
    trained: list[list[int]], e: list[dict[int, float]], mask: Padded, s: dict[str, Any]
) -> tuple[float, list[list[float]]]:
    """c times the mean entropy of the tokens that e leaves, and its derivative with the loss's sign."""
    slope = [[0.0] * len(mask_T) for mask_T in mask]
    if s["entropy_coef"] == 0.0:
        return 0.0, slope
    count = sum(sum(e_T.values()) for e_T in e) if s["entropy_tokens"] is None else s["entropy_tokens"]
    total = 0.0
    for i, places in enumerate(trained):
        for t in places:
            if e[i][t]:
                total += float(s["entropies"][i][t])
                slope[i][t] = -s["entropy_coef"] / count
    return (s["entropy_coef"] * total / count if count else 0.0), slope
