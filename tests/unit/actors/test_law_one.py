"""Law 1: the gradient of an optimizer batch does not depend on how it was cut to ranks, passes and packed rows.

The learner's own step runs here, on several ranks one after the other, with the smallest policy and an engine that
scales gradients as DeepSpeed does. What it must agree with: the reference implementation's loss of all rows of the
optimizer batch at once, padded, with its advantages. Real ranks and ZeRO stages: `tests/integration/test_learner.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.config import AlgorithmConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.entropy_cut import EntropyCut
from funicular.actors.learner_step import LearnerStep
from funicular.actors.losses.entropy import entropy_threshold_of
from funicular.actors.losses.presets import PRESETS, kl_in_reward, loss_settings, needs_reference, preset_of
from funicular.actors.packing import SharePrompts
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.step_plan import StepPlan, plan_scoring, plan_step
from funicular.actors.step_sums import StepSums
from funicular.actors.types import GroupPayload, KlScore, ScoredGroup
from tests.averaging_engine import UnigramEngine
from tests.builders import make_group, make_payload
from tests.reference import advantages as expected_of
from tests.reference.kl import k1_of_completion
from tests.reference.loss import padded_loss

LIMIT = 9
CPU = torch.device("cpu")
OFF_POLICY: dict[str, Any] = {"off_policy_threshold": 0.05}
CHOICES: list[dict[str, Any]] = [
    *({"loss": loss} for loss in PRESETS),
    *({"loss": loss, "beta": 0.3, "kl_estimator": "k3_unbiased"} for loss in ("dapo", "gspo", "cispo", "gmpo")),
    {"loss": "rloo", "beta": 0.2, "kl_in": "reward"},
    {"loss": "grpo", "beta": 0.2, "kl_in": "reward", "scale_rewards": "batch"},
    {"loss": "reinforce_pp", "beta": 0.2, "kl_in": "token_reward"},
    {"loss": "reinforce_pp_baseline", "beta": 0.2, "kl_in": "token_reward", "aggregation": "prompt"},
    {"loss": "reinforce", "beta": 0.2, "kl_in": "token_reward"},
    {"loss": "dapo", "top_entropy_quantile": 0.3, "entropy_coef": 0.1, "beta": 0.1},
    {"loss": "grpo", "entropy_coef": 0.1},
    {"loss": "vespo", "importance_correction": "token_mask", "importance_floor": 0.7},
    {"loss": "dapo", "importance_correction": "sequence_mask", "importance_floor": 0.5} | OFF_POLICY,
    {"loss": "sapo", "importance_correction": "geometric_mask", "geometric_floor": 0.9, "geometric_cap": 1.1},
    {"loss": "grpo", "importance_correction": "sequence_truncate", "delta": 4.0, "old_logprobs": "learner"},
    {"loss": "grpo", "old_logprobs": "generator", "aggregation": "prompt"} | OFF_POLICY,
    {"loss": "grpo", "whiten_advantages": "completions", "aggregation": "sequence_sum"},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Of each token id, (V,) float64: what the policies think of it."""

    old: torch.Tensor
    current: torch.Tensor
    reference: torch.Tensor
    entropies: torch.Tensor


class FakeReference:
    """A reference policy that is a table."""

    def __init__(self, words: Words) -> None:
        self._engine = UnigramEngine(words.reference, words.entropies)

    def scoring(self) -> nullcontext[UnigramEngine]:
        return nullcontext(self._engine)


def make_words(count: int, seed: int) -> Words:
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.5, count)
    tables = (old, old + 0.3 * rng.normal(size=count), old + 0.3 * rng.normal(size=count), rng.gamma(2, 0.7, count))
    # float32 numbers, so that what the learner rounds is exact
    tensors = [torch.from_numpy(table.astype(np.float32)).double() for table in tables]
    return Words(old=tensors[0], current=tensors[1], reference=tensors[2], entropies=tensors[3])


def with_payloads(groups: list[ScoredGroup], seed: int) -> tuple[dict[str, GroupPayload], Words]:
    """Payloads in which every completion token has an id of its own."""
    counts = [sum(group.generation.lengths_G) for group in groups]
    words = make_words(1 + sum(counts), seed)
    rng = np.random.default_rng(seed + 1)
    payloads, used = {}, 1
    for group, count in zip(groups, counts, strict=True):
        ids = np.arange(used, used + count, dtype=np.int32)
        used += count
        noise = 0.2 * rng.normal(size=count)
        payloads[group.group_id] = replace(
            make_payload(
                group.group_id, lengths_G=group.generation.lengths_G, prompt_tokens=group.generation.prompt_tokens
            ),
            token_ids=ids,
            generator_logprobs=(words.old.numpy()[ids] + noise).astype(np.float32),
        )
    return payloads, words


def cut_gradients(
    groups: list[ScoredGroup],
    payloads: dict[str, GroupPayload],
    words: Words,
    algorithm: AlgorithmConfig,
    *,
    ranks: int,
    micro_batch_tokens: int,
    packed: bool,
    share_prompts: SharePrompts = "off",
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each optimizer batch, by log-probabilities and entropies of the words, as the ranks compute it."""
    engines = [UnigramEngine(words.old, words.entropies, ranks=ranks, accumulation_steps=3) for _ in range(ranks)]
    steps: list[Any] = [
        LearnerStep(
            engine,
            algorithm,
            payloads,
            {},
            distillation=RankDistillation(DistillationConfig(), None),
            reference=FakeReference(words) if needs_reference(algorithm) else None,  # type: ignore[arg-type]
            entropy_coef=algorithm.entropy_coef,
            temperature=1.0,
            device=CPU,
            ranks=ranks,
            packed=packed,
        )
        for engine in engines
    ]
    arguments = (groups, algorithm, ranks, micro_batch_tokens, LIMIT)
    scores: dict[tuple[str, int], KlScore] = {}
    passes: dict[str, Any] = {"packed": packed, "share_prompts": share_prompts}
    scoring = plan_scoring(*arguments, **passes) if kl_in_reward(algorithm) else plan_step(*arguments, **passes)
    for step, of_rank in zip(steps, scoring.ranks, strict=True):
        scores |= step.score(of_rank)
    plan = plan_step(*arguments, **passes, kl=scores)

    out = []
    for index, normaliser in enumerate(plan.normalisers):
        leaves = words.current.clone().requires_grad_(), words.entropies.clone().requires_grad_()
        for engine in engines:
            engine.logprobs, engine.entropies = leaves
        cut = agreed_cut(steps, plan, index, algorithm, normaliser.tokens)
        for step, of_rank in zip(steps, plan.ranks, strict=True):
            sums = StepSums(loss_settings(algorithm), CPU)
            for micro in of_rank.optimizer_batches[index]:
                step._micro_batch(step._collate(micro), cut, sums)
        out.append(tuple(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves))
    return out  # type: ignore[return-value]


def agreed_cut(steps: list[Any], plan: StepPlan, index: int, algorithm: AlgorithmConfig, tokens: int) -> EntropyCut:
    """What `agree_on_cut` agrees on, without a process group."""
    if algorithm.top_entropy_quantile == 1:
        return EntropyCut(threshold=None, tokens=tokens)
    found = [
        step._before.entropies(step._collate(micro))
        for step, of_rank in zip(steps, plan.ranks, strict=True)
        for micro in of_rank.optimizer_batches[index]
        if micro.rows
    ]
    everyone = torch.cat(found) if found else torch.zeros(0)
    threshold = entropy_threshold_of(everyone, algorithm.top_entropy_quantile)
    return EntropyCut(threshold=threshold, tokens=int((everyone >= threshold).sum()))


def whole_gradients(
    groups: list[ScoredGroup], payloads: dict[str, GroupPayload], words: Words, algorithm: AlgorithmConfig
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same of all rows of each optimizer batch at once, from the formulas."""
    preset, loss = preset_of(algorithm), loss_settings(algorithm)
    if preset.zero_variance_groups == "drop":
        groups = [group for group in groups if len({r for r in group.rewards_G if r is not None}) > 1]
    rows_PG = [token_rows(group, payloads[group.group_id], algorithm) for group in groups]
    advantages_PG = expected_advantages(groups, rows_PG, words, algorithm)
    if not groups:
        return [(torch.zeros_like(words.old), torch.zeros_like(words.old))]
    count = min(algorithm.optimizer_batches, len(groups))
    out: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index in range(count):
        chosen = range(len(groups) * index // count, len(groups) * (index + 1) // count)
        rows = [(p, row) for p in chosen for row in rows_PG[p] if row is not None]
        ids = padded([torch.tensor(row.ids) for _, row in rows])
        whole = padded_loss(
            words.current[ids].tolist(),
            None if preset.old_logprobs == "generator" else words.old[ids].tolist(),
            padded([torch.tensor(a) for p in chosen for a in advantages_PG[p] if a is not None]).tolist(),
            padded([torch.full((len(row.ids),), int(row.trained)) for _, row in rows]).tolist(),
            aggregation=preset.aggregation,
            max_completion_tokens=LIMIT,
            reference_logprobs=words.reference[ids].tolist(),
            generator_logprobs=padded([torch.tensor(row.generator_logprobs) for _, row in rows]).tolist(),
            groups=[p for p, _ in rows],
            group_count=len(chosen),
            entropies=words.entropies[ids].tolist(),
            entropy_coef=algorithm.entropy_coef,
            top_entropy_quantile=algorithm.top_entropy_quantile,
            **asdict(loss),
        )
        # a padded place has a gradient of 0, whatever word stands there
        of_words = [torch.zeros_like(words.old), torch.zeros_like(words.old)]
        for total, gradient in zip(of_words, (whole.gradient, whole.entropy_gradient), strict=True):
            total.index_add_(0, ids.flatten(), torch.tensor(gradient, dtype=torch.float64).flatten())
        out.append((of_words[0], of_words[1]))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A completion that is not void."""

    ids: list[int]
    generator_logprobs: list[float]
    trained: bool


def token_rows(group: ScoredGroup, payload: GroupPayload, algorithm: AlgorithmConfig) -> list[TokenRow | None]:
    masked = algorithm.mask_truncated_completions
    return [
        TokenRow(
            ids=payload.token_ids[payload.completion(index)].tolist(),
            generator_logprobs=payload.generator_logprobs[payload.completion(index)].astype(float).tolist(),
            trained=not (masked and group.generation.truncated_G[index]),
        )
        if valid
        else None
        for index, valid in enumerate(group.valid_G)
    ]


def expected_advantages(
    groups: list[ScoredGroup], rows_PG: list[list[TokenRow | None]], words: Words, algorithm: AlgorithmConfig
) -> list[list[list[float] | None]]:
    """One advantage for each token of each valid completion, by the reference implementation."""
    preset = preset_of(algorithm)

    def old_and_reference(row: TokenRow) -> tuple[list[float], list[float]]:
        ids = row.ids if row.trained else []
        return words.old[ids].tolist(), words.reference[ids].tolist()

    rewards: list[list[float | None]] = [list(group.rewards_G) for group in groups]
    if algorithm.beta > 0 and algorithm.kl_in == "reward":
        rewards = [
            [
                None if r is None or row is None else r - algorithm.beta * k1_of_completion(*old_and_reference(row))
                for r, row in zip(rewards_G, rows_G, strict=True)
            ]
            for rewards_G, rows_G in zip(rewards, rows_PG, strict=True)
        ]
    if preset.baseline == "beta":
        advantages = expected_of.beta_advantages(rewards, algorithm.beta_reward_min, algorithm.beta_reward_max)
    else:
        lengths = [group.generation.lengths_G for group in groups]
        advantages = expected_of.group_advantages(rewards, preset.scale_rewards, preset.baseline, lengths)
    pairs = [
        (a, row)
        for advantages_G, rows_G in zip(advantages, rows_PG, strict=True)
        for a, row in zip(advantages_G, rows_G, strict=True)
    ]
    per_token: list[list[float] | None]
    if algorithm.beta > 0 and algorithm.kl_in == "token_reward":
        known = [(a, row) for a, row in pairs if a is not None and row is not None and row.trained]
        found = expected_of.token_advantages(
            [a for a, _ in known],
            *zip(*(old_and_reference(row) for _, row in known), strict=True),
            algorithm.beta,
            whiten=preset.whiten_advantages == "tokens",
        ) if known else []  # fmt: skip
        in_order = iter(found)
        per_token = [
            None if row is None else next(in_order) if row.trained else [0.0] * len(row.ids) for _, row in pairs
        ]
    else:
        if preset.whiten_advantages != "none":
            tokens = [[0 if row is None or not row.trained else len(row.ids) for row in rows_G] for rows_G in rows_PG]
            if preset.whiten_advantages == "completions" or sum(map(sum, tokens)) > 1:
                advantages = expected_of.whitened(advantages, preset.whiten_advantages, tokens)
        flat = [a for advantages_G in advantages for a in advantages_G]
        per_token = [
            None if a is None or row is None else [a] * len(row.ids) for a, (_, row) in zip(flat, pairs, strict=True)
        ]
    again = iter(per_token)
    return [[next(again) for _ in rows_G] for rows_G in rows_PG]


def padded(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(
        torch.float64 if parts[0].is_floating_point() else torch.int64
    )


@st.composite
def batches(draw: st.DrawFn) -> list[ScoredGroup]:
    groups = []
    for index in range(draw(st.integers(2, 5))):
        size = draw(st.integers(2, 5))
        rewards = draw(
            st.lists(st.sampled_from([0.0, 1.0, 0.25, None]), min_size=size, max_size=size).filter(
                lambda r: sum(x is not None for x in r) >= 2
            )
        )
        groups.append(
            make_group(
                f"g{index}",
                rewards_G=rewards,
                lengths_G=draw(st.lists(st.integers(1, LIMIT), min_size=size, max_size=size)),
                truncated_G=draw(st.lists(st.booleans(), min_size=size, max_size=size)),
                prompt_tokens=draw(st.integers(1, 4)),
            )
        )
    return groups


def assert_law_one(groups: list[ScoredGroup], algorithm: AlgorithmConfig, seed: int, **cut: Any) -> None:
    payloads, words = with_payloads(groups, seed)
    expected = whole_gradients(groups, payloads, words, algorithm)
    got = cut_gradients(groups, payloads, words, algorithm, **cut)
    assert len(got) == len(expected)
    for of_cut, of_whole in zip(got, expected, strict=True):
        for a, b in zip(of_cut, of_whole, strict=True):
            # token weights and advantages cross to the learner as float32
            assert (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-12, (algorithm, cut)


FIXED = [
    make_group("a", rewards_G=[0.0, 1.0, 0.25, None], lengths_G=[3, 9, 5, 2], truncated_G=[False, True, False, False]),
    make_group("b", rewards_G=[1.0, 1.0], lengths_G=[4, 1]),
    make_group("c", rewards_G=[0.25, 0.0, 1.0], lengths_G=[1, 9, 2], truncated_G=[False, True, False], prompt_tokens=2),
    make_group("d", rewards_G=[1.0, 0.0], lengths_G=[7, 6]),
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: " ".join(map(str, choices.values())))
def test_every_loss_has_the_gradient_of_the_whole_batch(choices: dict[str, Any]) -> None:
    algorithm = AlgorithmConfig(**choices)
    assert_law_one(FIXED, algorithm, 5, ranks=1, micro_batch_tokens=10_000, packed=False)
    algorithm = replace(algorithm, mask_truncated_completions=True, optimizer_batches=2)
    assert_law_one(FIXED, algorithm, 5, ranks=3, micro_batch_tokens=16, packed=True)


@settings(deadline=None, max_examples=120)
@given(
    batches(),
    st.sampled_from(CHOICES),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.fixed_dictionaries(
        {
            "ranks": st.integers(1, 4),
            "micro_batch_tokens": st.sampled_from([1, 12, 30, 1000]),
            "packed": st.booleans(),
            "share_prompts": st.sampled_from(["auto", "on", "off"]),
        }
    ),
)
def test_no_cut_changes_the_gradient(
    groups: list[ScoredGroup],
    choices: dict[str, Any],
    mask_truncated: bool,
    optimizer_batches: int,
    seed: int,
    cut: dict[str, Any],
) -> None:
    algorithm = AlgorithmConfig(
        **choices, mask_truncated_completions=mask_truncated, optimizer_batches=optimizer_batches
    )
    assert_law_one(groups, algorithm, seed, **cut)
