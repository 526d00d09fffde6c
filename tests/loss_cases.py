"""Batches that hold every kind of row, every choice of a loss, and the comparison with the reference.

Inputs are float32 numbers, so that one reference in float64 serves both precisions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from funicular.actors.loss import loss_from_tensors
from tests.reference.loss import Loss, padded_loss

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
AGGREGATIONS = ("sequence", "token", "constant", "sequence_sum", "prompt")
LEVELS = ("token", "sequence", "sequence_token", "sequence_sum")
OBJECTIVES: dict[str, Sequence[str]] = {
    "ppo_clip": LEVELS,
    "cispo": LEVELS,
    "sapo": LEVELS,
    "vespo": ("token",),
    "gmpo": ("token",),
    "reinforce": LEVELS,
}
"""With the ratio levels that each allows."""
KL: dict[str, dict[str, Any]] = {
    "no KL": {},
    "k2": {"beta": 0.3, "kl_estimator": "k2"},
    "k3": {"beta": 0.2, "kl_estimator": "k3"},
    "k3_unbiased": {"beta": 0.15, "kl_estimator": "k3_unbiased"},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "token_truncate": {"importance_cap": 1.3},
    "token_truncate, floor": {
        "importance_correction": "token_truncate", "importance_cap": 1.3, "importance_floor": 0.8,
    },
    "token_mask": {"importance_correction": "token_mask", "importance_cap": 1.5, "importance_floor": 0.6},
    "sequence_truncate": {"importance_correction": "sequence_truncate", "importance_cap": 1.5},
    "sequence_mask": {"importance_correction": "sequence_mask", "importance_cap": 3.0},
    "geometric_mask": {
        "importance_correction": "geometric_mask", "geometric_floor": 0.9, "geometric_cap": 1.1, "importance_cap": 1.2,
    },
    "geometric_mask, unbounded": {
        "importance_correction": "geometric_mask", "geometric_floor": 0.8, "geometric_cap": 1.25,
    },
}  # fmt: skip
MASKS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "off_policy": {"off_policy_threshold": 0.05},
    "top_entropy": {"top_entropy_quantile": 0.35},
    "entropy_bonus": {"entropy_coef": 0.07},
    "top_entropy with bonus": {"top_entropy_quantile": 0.5, "entropy_coef": 0.07, "off_policy_threshold": 0.0},
}
DRIFTS = {"on policy": 0.0, "near": 0.15, "far": 1.5}
"""Deviation of the policy's log-probabilities from the old ones, nats."""
_GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -1e30)
_MASKS = (
    "110111",  # a tool's token in the middle
    "111000",
    "100000",  # a single token
    "111110",
    "000000",  # truncated and masked, or empty
    "111111",
    "111100",
    "011100",  # starts after a tool's token
    "110000",
)
_ZERO_ADVANTAGE = (6, 8)
"""Rows of a group without variance."""


def corrections_of(objective: str) -> list[str]:
    """Names in `CORRECTIONS` that an objective allows."""
    return [name for name in CORRECTIONS if objective != "vespo" or name.startswith(("none", "token_"))]


def make_batch(
    drift: float, *, seed: int = 0, per_token: bool = False, masks: Sequence[str] = _MASKS
) -> dict[str, Any]:
    """Padded arrays: rows with holes, of one token, without any, without variance; NaN from the generator; garbage
    wherever nothing is trained."""
    rng = np.random.default_rng([seed, len(masks)])
    mask = np.array([[int(m) for m in row] for row in masks])
    shape = mask.shape
    old = -rng.exponential(1.5, shape) - 0.05
    advantages = rng.normal(size=shape if per_token else len(masks))
    for row in _ZERO_ADVANTAGE:
        advantages[row % len(masks)] = 0.0
    arrays = {
        "logprobs": -np.abs(old + drift * rng.normal(size=shape)),
        "old_logprobs": old,
        "reference_logprobs": -np.abs(old + 0.4 * rng.normal(size=shape)),
        "generator_logprobs": -np.abs(old + 0.2 * rng.normal(size=shape)),
        "entropies": rng.gamma(2.0, 0.7, size=shape),
        "advantages": advantages,
    }
    arrays["generator_logprobs"][rng.random(shape) < 0.12] = np.nan
    garbage = rng.choice(_GARBAGE, size=shape)
    for name, array in arrays.items():
        if array.shape == shape:
            arrays[name] = np.where(mask == 1, array, np.roll(garbage, len(name)))
        arrays[name] = arrays[name].astype(np.float32).astype(np.float64)
    return arrays | {"mask": mask, "groups": np.arange(len(masks)) // 3 * 7 - 3}


def covering(objective: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Few cases in which every value of each factor meets every value of each other.

    Returns:
        Name, arguments of `make_batch`, and options of the loss.
    """
    factors: dict[str, Sequence[Any]] = {
        "aggregation": AGGREGATIONS,
        "kl": tuple(KL),
        "correction": corrections_of(objective),
        "mask": tuple(MASKS),
        "drift": tuple(DRIFTS),
        "per_token": (False, True),
    }
    return [
        (
            ", ".join(map(str, case.values())),
            {"drift": DRIFTS[case["drift"]], "per_token": case["per_token"], "seed": seed},
            {"aggregation": case["aggregation"]} | KL[case["kl"]] | CORRECTIONS[case["correction"]]
            | MASKS[case["mask"]],
        )
        for seed, case in enumerate(_all_pairs(factors))
    ]  # fmt: skip


def _all_pairs(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Greedy: of some candidates, the one with most pairs that have not been met."""
    random = Random(0)
    open_pairs = set()
    for a, b in itertools.combinations(factors, 2):
        open_pairs |= {frozenset([(a, x), (b, y)]) for x, y in itertools.product(factors[a], factors[b])}
    cases: list[dict[str, Any]] = []
    while open_pairs:
        needed = dict(min(open_pairs, key=lambda pair: sorted(map(repr, pair))))
        candidates = [{name: random.choice(values) for name, values in factors.items()} | needed for _ in range(30)]
        pairs = [{frozenset(pair) for pair in itertools.combinations(case.items(), 2)} for case in candidates]
        best = max(range(len(pairs)), key=lambda index: len(pairs[index] & open_pairs))
        open_pairs -= pairs[best]
        cases.append(candidates[best])
    return cases


def reference(batch: Mapping[str, Any], options: Mapping[str, Any]) -> Loss:
    """What the loss and its gradients are."""
    lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in batch.items()}
    return padded_loss(**(lists | {"max_completion_tokens": 11} | dict(options)))


def computed(
    batch: Mapping[str, Any], options: Mapping[str, Any], dtype: torch.dtype
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, and gradients by log-probabilities and by entropies, of the function under test."""
    tensors = {
        name: torch.from_numpy(value) if value.dtype.kind == "i" else torch.from_numpy(value).to(dtype)
        for name, value in batch.items()
        if isinstance(value, np.ndarray)
    }
    leaves = [tensors["logprobs"].requires_grad_(), tensors["entropies"].requires_grad_()]
    others = {name: value for name, value in batch.items() if name not in tensors}
    loss = loss_from_tensors(**(others | tensors | {"max_completion_tokens": 11} | dict(options)))
    by_logprobs, by_entropies = torch.autograd.grad(loss, leaves, allow_unused=True)
    none = torch.zeros_like(leaves[1])
    return float(loss.detach()), by_logprobs.double(), none if by_entropies is None else by_entropies.double()


def assert_agree(
    batch: Mapping[str, Any], options: Mapping[str, Any], name: str = "", *, dtypes: Sequence[torch.dtype] = ()
) -> None:
    """Value and gradients agree with the reference, in both precisions.

    An error of the value is relative to the sum of its terms' absolute values, one of a gradient to its largest entry.
    """
    expected = reference(batch, options)
    for dtype in dtypes or TOLERANCE:
        tolerance = TOLERANCE[dtype]
        value, by_logprobs, by_entropies = computed(batch, options, dtype)
        assert abs(value - expected.value) <= tolerance * expected.magnitude, (name, dtype, value, expected.value)
        pairs = ((by_logprobs, expected.gradient), (by_entropies, expected.entropy_gradient))
        for got, wanted in pairs:
            wanted_tensor = torch.tensor(wanted, dtype=torch.float64).reshape(got.shape)
            error = (got - wanted_tensor).abs().max() if got.numel() else torch.zeros(())
            largest = wanted_tensor.abs().max() if got.numel() else torch.zeros(())
            assert error <= tolerance * largest + torch.finfo(dtype).tiny, (name, dtype, float(error / largest))
