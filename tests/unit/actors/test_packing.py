from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.advantage import group_advantages
from funicular.actors.config import AlgorithmConfig
from funicular.actors.packing import PlannedRow, SharePrompts, tokens_of
from funicular.actors.step_plan import StepPlan, plan_step
from funicular.actors.types import ScoredGroup
from tests.builders import make_group

LIMIT = 16


def plan(
    groups: list[ScoredGroup],
    *,
    ranks: int = 1,
    micro_batch_tokens: int = 64,
    packed: bool = False,
    share_prompts: SharePrompts = "off",
    **algorithm: Any,
) -> StepPlan:
    cut = (ranks, micro_batch_tokens, LIMIT)
    return plan_step(groups, AlgorithmConfig(**algorithm), *cut, packed=packed, share_prompts=share_prompts)


def rows_of(step: StepPlan, optimizer_batch: int | None = None) -> list[PlannedRow]:
    return [
        row
        for rank in step.ranks
        for index, micro_batches in enumerate(rank.optimizer_batches)
        if optimizer_batch in (None, index)
        for micro in micro_batches
        for row in micro.rows
    ]


@st.composite
def scored_groups(draw: st.DrawFn) -> list[ScoredGroup]:
    groups = []
    for index in range(draw(st.integers(1, 6))):
        size = draw(st.integers(2, 6))
        rewards = draw(
            st.lists(st.sampled_from([0.0, 1.0, 0.5, None]), min_size=size, max_size=size).filter(
                lambda r: sum(x is not None for x in r) >= 2
            )
        )
        groups.append(
            make_group(
                f"g{index}",
                rewards_G=rewards,
                lengths_G=draw(st.lists(st.integers(1, LIMIT), min_size=size, max_size=size)),
                truncated_G=draw(st.lists(st.booleans(), min_size=size, max_size=size)),
                prompt_tokens=draw(st.integers(1, 20)),
            )
        )
    return groups


ALGORITHMS = st.fixed_dictionaries(
    {
        "loss": st.sampled_from(["grpo", "dr_grpo", "bnpo"]),
        "optimizer_batches": st.integers(1, 3),
        "beta": st.sampled_from([0.0, 0.1]),
        "mask_truncated_completions": st.booleans(),
    }
)
CUTS = {
    "groups": scored_groups(),
    "algorithm": ALGORITHMS,
    "ranks": st.integers(1, 5),
    "micro_batch_tokens": st.sampled_from([1, 30, 64, 1000]),
    "passes": st.sampled_from(
        [{"packed": False}, *({"packed": True, "share_prompts": share} for share in ("auto", "on", "off"))]
    ),
}


@settings(deadline=None)
@given(**CUTS)
def test_the_cut_changes_neither_rows_nor_their_weights(
    groups: list[ScoredGroup], algorithm: dict[str, Any], ranks: int, micro_batch_tokens: int, passes: dict[str, Any]
) -> None:
    whole = plan(groups, ranks=1, micro_batch_tokens=10**6, **algorithm)
    cut = plan(groups, ranks=ranks, micro_batch_tokens=micro_batch_tokens, **passes, **algorithm)
    assert whole.normalisers == cut.normalisers
    for index in range(len(whole.normalisers)):
        assert Counter(rows_of(whole, index)) == Counter(rows_of(cut, index))


@settings(deadline=None)
@given(**CUTS)
def test_every_rank_makes_the_same_passes(
    groups: list[ScoredGroup], algorithm: dict[str, Any], ranks: int, micro_batch_tokens: int, passes: dict[str, Any]
) -> None:
    step = plan(groups, ranks=ranks, micro_batch_tokens=micro_batch_tokens, **passes, **algorithm)
    shapes = {tuple(map(len, rank.optimizer_batches)) for rank in step.ranks}
    assert len(shapes) == 1
    for index in range(len(step.normalisers)):
        passes = [rank.optimizer_batches[index] for rank in step.ranks]
        assert all(any(batch[n].rows for batch in passes) for n in range(len(passes[0])))  # none is for nothing


@settings(deadline=None)
@given(**CUTS)
def test_groups_stay_whole_and_micro_batches_within_the_budget(
    groups: list[ScoredGroup], algorithm: dict[str, Any], ranks: int, micro_batch_tokens: int, passes: dict[str, Any]
) -> None:
    step = plan(groups, ranks=ranks, micro_batch_tokens=micro_batch_tokens, **passes, **algorithm)
    owners = [set(rank.group_ids) for rank in step.ranks]
    assert sum(map(len, owners)) == len(set().union(*owners))
    for rank in step.ranks:
        for micro in (micro for batch in rank.optimizer_batches for micro in batch if len(micro.rows) > 1):
            lengths = [tokens_of(tree) for tree in micro.trees]
            assert (sum(lengths) if passes["packed"] else len(lengths) * max(lengths)) <= micro_batch_tokens


@settings(deadline=None)
@given(scored_groups(), ALGORITHMS)
def test_weights_sum_to_the_mean_that_the_aggregation_names(
    groups: list[ScoredGroup], algorithm: dict[str, Any]
) -> None:
    """With beta > 0 every row with tokens is planned, so the tokens' weights can be added up."""
    step = plan(groups, **(algorithm | {"beta": 0.1, "optimizer_batches": 1}))
    (normaliser,) = step.normalisers
    rows = rows_of(step)
    total = sum(row.token_weight * row.completion_tokens for row in rows)
    tokens = sum(row.completion_tokens for row in rows)
    assert tokens == normaliser.tokens
    expected = {
        "sequence": len(rows) / normaliser.rows,
        "token": 1.0 if tokens else 0.0,
        "constant": tokens / (normaliser.rows * LIMIT),
    }[normaliser.aggregation]
    assert total == pytest.approx(expected)


def test_void_completions_are_in_no_row_count_and_no_token_count() -> None:
    group = make_group("g", rewards_G=[1.0, None, 0.0, 1.0], lengths_G=[2, 3, 4, 5], finite_G=[True, True, True, False])
    step = plan([group], loss="bnpo")
    assert [row.completion for row in sorted(rows_of(step), key=lambda row: row.completion)] == [0, 2]
    assert (step.normalisers[0].rows, step.normalisers[0].tokens) == (2, 6)


def test_masked_truncated_completions_lose_tokens_but_stay_rows_and_in_the_baseline() -> None:
    group = make_group("g", rewards_G=[1.0, 0.0, 0.0], lengths_G=[4, 6, 5], truncated_G=[False, True, False])
    step = plan([group], mask_truncated_completions=True)
    (expected,) = group_advantages([[1.0, 0.0, 0.0]], "group")
    assert {row.completion: row.advantage for row in rows_of(step)} == {0: expected[0], 2: expected[2]}
    assert (step.normalisers[0].rows, step.normalisers[0].tokens) == (3, 9)


def test_rows_without_gradient_are_not_computed_but_count() -> None:
    groups = [
        make_group("same", rewards_G=[1.0, 1.0], lengths_G=[7, 7]),
        make_group("mixed", rewards_G=[1.0, 0.0], lengths_G=[3, 3]),
    ]
    step = plan(groups, loss="bnpo")
    assert {row.group_id for row in rows_of(step)} == {"mixed"}
    assert (step.normalisers[0].rows, step.normalisers[0].tokens) == (4, 20)
    assert {row.group_id for row in rows_of(plan(groups, loss="bnpo", beta=0.1))} == {"same", "mixed"}


def test_an_optimizer_batch_without_gradient_has_no_passes_on_any_rank() -> None:
    groups = [
        make_group("same", rewards_G=[1.0, 1.0], lengths_G=[7, 7]),
        make_group("mixed", rewards_G=[1.0, 0.0], lengths_G=[3, 3]),
    ]
    step = plan(groups, ranks=3, optimizer_batches=2)
    assert [rank.optimizer_batches[0] for rank in step.ranks] == [(), (), ()]
    assert all(len(rank.optimizer_batches[1]) == 1 for rank in step.ranks)


def test_advantages_are_taken_over_the_whole_training_batch() -> None:
    groups = [
        make_group("a", rewards_G=[1.0, 0.0], lengths_G=[3, 3]),
        make_group("b", rewards_G=[9.0, 5.0], lengths_G=[3, 3]),
    ]
    step = plan(groups, optimizer_batches=2, scale_rewards="batch")
    expected = group_advantages([[1.0, 0.0], [9.0, 5.0]], "batch")
    assert [row.advantage for row in rows_of(step, 0)] == expected[0]
    assert [row.advantage for row in rows_of(step, 1)] == expected[1]


def test_optimizer_batches_take_groups_in_order() -> None:
    groups = [make_group(f"g{i}", rewards_G=[1.0, 0.0], lengths_G=[3, 3]) for i in range(5)]
    step = plan(groups, optimizer_batches=2)
    assert [{row.group_id for row in rows_of(step, i)} for i in range(2)] == [{"g0", "g1"}, {"g2", "g3", "g4"}]


def test_fewer_groups_than_optimizer_batches_make_one_batch_each() -> None:
    groups = [make_group(f"g{i}", rewards_G=[1.0, 0.0], lengths_G=[3, 3]) for i in range(2)]
    assert len(plan(groups, optimizer_batches=4).normalisers) == 2


@settings(deadline=None)
@given(scored_groups(), st.sampled_from([40, 64, 100]))
def test_packed_passes_are_at_least_half_full_but_one(groups: list[ScoredGroup], micro_batch_tokens: int) -> None:
    """No two of them could have been one."""
    (rank,) = plan(groups, micro_batch_tokens=micro_batch_tokens, packed=True, beta=0.1).ranks
    totals = sorted(sum(row.length for row in micro.rows) for batch in rank.optimizer_batches for micro in batch)
    assert all(a + b > micro_batch_tokens for a, b in itertools.pairwise(totals))


def test_a_pass_counts_padding_only_where_there_is_any() -> None:
    groups = [make_group("g", rewards_G=[1.0, 0.0, 0.0, 0.0], lengths_G=[16, 1, 1, 1], prompt_tokens=1)]
    assert [
        len(plan(groups, micro_batch_tokens=23, packed=p).ranks[0].optimizer_batches[0]) for p in (True, False)
    ] == [
        1,
        2,
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_ranks_are_balanced_by_tokens(packed: bool) -> None:
    lengths = [16, 8, 8, 16, 4, 4, 4, 4]
    groups = [
        make_group(f"g{i}", rewards_G=[1.0, 0.0], lengths_G=[n, n], prompt_tokens=1) for i, n in enumerate(lengths)
    ]
    step = plan(groups, ranks=2, packed=packed)
    loads = [
        sum(row.length for batch in rank.optimizer_batches for micro in batch for row in micro.rows)
        for rank in step.ranks
    ]
    assert max(loads) - min(loads) <= 10


def test_a_step_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        plan([])


def trees_of(step: StepPlan) -> list[list[list[tuple[str, int]]]]:
    """Of the first rank's only optimizer batch: group and completion tokens of each row of each tree of each pass."""
    return [
        [[(row.group_id, row.completion_tokens) for row in tree] for tree in micro.trees]
        for micro in step.ranks[0].optimizer_batches[0]
    ]


LARGE = make_group("large", rewards_G=[1.0, 0.0, 0.0, 0.0], lengths_G=[16, 9, 8, 2], prompt_tokens=20)
SMALL = make_group("small", rewards_G=[1.0, 0.0], lengths_G=[3, 2], prompt_tokens=6)


def test_completions_of_a_group_share_their_prompt_and_groups_share_a_pass() -> None:
    step = plan([SMALL, LARGE], micro_batch_tokens=100, packed=True, share_prompts="on")
    assert trees_of(step) == [[[("large", 16), ("large", 9), ("large", 8), ("large", 2)], [("small", 3), ("small", 2)]]]
    assert step.metrics["perf/pass_tokens"] == (20 + 35) + (6 + 5)
    assert step.metrics["perf/pass_tokens_unshared"] == (4 * 20 + 35) + (2 * 6 + 5)


def test_a_group_that_is_too_large_for_a_pass_repeats_its_prompt() -> None:
    step = plan([SMALL, LARGE], micro_batch_tokens=45, packed=True, share_prompts="on")
    assert trees_of(step) == [
        [[("large", 16), ("large", 9)]],
        [[("large", 8), ("large", 2)], [("small", 3), ("small", 2)]],
    ]
    assert step.metrics["perf/pass_tokens"] == 2 * 20 + 35 + 6 + 5


def test_a_row_that_is_too_large_for_a_pass_has_its_own() -> None:
    step = plan([LARGE], micro_batch_tokens=30, packed=True, share_prompts="on")
    assert trees_of(step) == [[[("large", 16)]], [[("large", 8), ("large", 2)]], [[("large", 9)]]]


def test_sharing_is_left_where_it_saves_less_than_a_tenth() -> None:
    long = make_group("long", rewards_G=[1.0, 0.0, 0.0], lengths_G=[16, 16, 16], prompt_tokens=2)
    assert trees_of(plan([long], packed=True, share_prompts="auto")) == [
        [[("long", 16)], [("long", 16)], [("long", 16)]]
    ]
    assert trees_of(plan([long], packed=True, share_prompts="on")) == [[[("long", 16)] * 3]]
    (micro,) = trees_of(plan([long, SMALL], micro_batch_tokens=99, packed=True, share_prompts="auto"))
    assert [len(tree) for tree in micro] == [1, 1, 1, 2]
    assert (
        plan([long], share_prompts="on").ranks == plan([long], share_prompts="off").ranks
    )  # padded rows share nothing


def test_a_group_with_one_row_to_train_shares_nothing() -> None:
    group = make_group("g", rewards_G=[1.0, 0.0, 0.5], lengths_G=[4, 4, 4])
    assert trees_of(plan([group], packed=True, share_prompts="on")) == [[[("g", 4), ("g", 4)]]]  # 0.5 is the mean
    masked = make_group("g", rewards_G=[1.0, 0.0], lengths_G=[4, 6], truncated_G=[False, True])
    step = plan([masked], packed=True, share_prompts="on", mask_truncated_completions=True)
    assert trees_of(step) == [[[("g", 4)]]]


def test_ranks_are_balanced_by_what_is_left_after_sharing() -> None:
    """By rows, the group with the long prompt would be as much as all others together."""
    groups = [make_group("long prompt", rewards_G=[1.0, *[0.0] * 7], lengths_G=[4] * 8, prompt_tokens=40)]
    groups += [make_group(f"g{i}", rewards_G=[1.0, 0.0], lengths_G=[16, 16], prompt_tokens=40) for i in range(4)]
    loads = [
        sum(tokens_of(tree) for batch in rank.optimizer_batches for micro in batch for tree in micro.trees)
        for rank in plan(groups, ranks=2, micro_batch_tokens=10_000, packed=True, share_prompts="on").ranks
    ]
    assert sorted(loads) == [144, 216]
