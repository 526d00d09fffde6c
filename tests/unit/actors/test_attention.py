from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.actors.attention import rows_attention
from funicular.actors.layout import Layout
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing
from funicular.actors.row_blocks import row_blocks
from tests.random_models import random_model

CPU = torch.device("cpu")
LENGTHS = (19, 18, 7, 7, 7, 2, 1)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 6}),
    ("gemma2", {"sliding_window": 6, "attn_logit_softcapping": 2.0}),
    ("granite", {"attention_multiplier": 0.2}),
]


class Module:
    """What the attention function looks at in a model's layer."""

    is_causal = True


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """One row, (heads, L, d), from the definition."""
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])[None]
    seen = (distance >= 0) & (distance < (window or 10**6))
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    window=st.sampled_from([None, 1, 5, 39]),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 3),
)
def test_attention_stays_inside_each_row(
    lengths: list[int], window: int | None, softcap: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def states(heads: int) -> torch.Tensor:
        shape = (1, sum(lengths), heads, 4)  # as layers make them: heads are not the outer dimension in memory
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = states(4), states(2), states(2)
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    out, weights = rows_attention(
        Module(),
        q,
        k,
        v,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        row_blocks=row_blocks(lengths, CPU),
    )
    assert weights is None
    parts = zip(*(x[0].split(lengths, 1) for x in (q, k, v)), strict=True)
    expected = torch.cat([plain_attention(*part, 0.3, window, softcap).transpose(0, 1) for part in parts])[None]
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((out * weight).sum(), leaves)
    for a, b in zip(got, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_blocks_hold_all_rows_in_order_and_waste_little(lengths: list[int]) -> None:
    blocks = row_blocks(lengths, CPU)
    left = list(lengths)
    end = 0
    for block in blocks:
        rows, left = left[: block.rows], left[block.rows :]
        assert (block.start, block.end, block.width) == (end, end + sum(rows), max(rows))
        end = block.end
        used = sum(length**2 for length in rows)
        assert block.rows * block.width**2 <= 1.25 * used + 4096
        if block.to_padded is not None and block.to_packed is not None:
            assert torch.equal(block.to_padded[block.to_packed], torch.arange(sum(rows)))
    assert not left


def test_a_long_row_needs_memory_for_its_window_only() -> None:
    """No mask and no scores of the whole pass."""
    from tests.unit.actors.test_token_logprobs import LargestTensor

    lengths = [3000, 2000, 10, 10]
    q, k, v = (torch.randn(1, sum(lengths), 1, 4).transpose(1, 2).requires_grad_() for _ in range(3))
    for window in (None, 100):
        with LargestTensor() as seen:
            blocks = row_blocks(lengths, CPU)
            out, _ = rows_attention(Module(), q, k, v, None, sliding_window=window, row_blocks=blocks)
            out.sum().backward()
        assert seen.elements <= max(512 * 612, 4 * sum(lengths))


@pytest.mark.parametrize(("architecture", "options"), MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_are_the_models_own_rows(architecture: str, options: dict[str, Any], checkpointing: bool) -> None:
    """Values and gradients of log-probabilities and entropies, against the model's logits of each row alone."""
    rows = [
        torch.randint(60, (n,), generator=torch.Generator().manual_seed(i)) for i, n in enumerate((*LENGTHS[:-1], 2))
    ]
    plain = random_model(architecture, **options)
    plain.set_attn_implementation("eager")
    terms = []
    for row in rows:
        scores = torch.log_softmax(plain(input_ids=row[None]).logits[0, :-1] / 0.8, -1)
        terms += [scores.gather(1, row[1:, None]).sum(), (scores.exp() * scores).sum()]
    torch.stack(terms).sum().backward()

    model = random_model(architecture, **options)
    policy = PolicyModel(model, compute_dtype=torch.float32, packing=True)
    assert policy.packed
    if checkpointing:
        enable_gradient_checkpointing(model)
    lengths = [len(row) for row in rows]
    firsts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    scored = torch.tensor(sorted(set(range(sum(lengths))) - set(firsts.tolist())))
    layout, ids = Layout.of_rows(lengths), torch.cat(rows)
    logprobs, entropies = policy(
        ids[None],
        None,
        layout.positions(CPU),
        scored - 1,
        ids[scored],
        temperature=0.8,
        layout=layout,
    )
    (logprobs.sum() - entropies.sum()).backward()
    parts = [len(row) - 1 for row in rows]
    sums = [[x.sum() for x in values.split(parts)] for values in (logprobs, -entropies)]
    got = torch.stack([x for pair in zip(*sums, strict=True) for x in pair])
    torch.testing.assert_close(got, torch.stack(terms), rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 1e-5 * float(b.grad.norm()), name


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("gpt_oss", {}, "s_aux"),
        ("qwen3_next", {}, "linear_attention"),
        ("bloom", {"n_head": 4}, "FlashAttention"),
    ],
)
def test_a_model_that_cannot_pack_is_found_and_says_why_once(
    architecture: str, options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(architecture, **options)
    before = model.config._attn_implementation
    with caplog.at_level(logging.WARNING, "funicular"):
        policy = PolicyModel(model, compute_dtype=torch.float32, packing=True)
    assert not policy.packed
    assert model.config._attn_implementation == before
    said = [record.message for record in caplog.records if record.name.startswith("funicular")]
    assert [reason in message for message in said] == [True]
    ids = torch.arange(6)[None]
    policy(ids, torch.ones_like(ids), ids, torch.arange(5), ids[0, 1:], temperature=1.0)


def test_a_layer_that_looks_across_rows_is_found(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("llama")
    mix = torch.nn.Conv1d(32, 32, 3, padding=1)
    model.model.norm.register_forward_hook(lambda module, inputs, output: mix(output.transpose(1, 2)).transpose(1, 2))
    assert not PolicyModel(model, compute_dtype=torch.float32, packing=True).packed
    assert "packed rows differ from single ones" in caplog.text


def test_rows_that_do_not_arrive_are_an_error() -> None:
    states = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match="does not call attention over packed rows as expected"):
        rows_attention(Module(), states, states, states, None)
