"""Attention where rows share beginnings, against each row alone from the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from funicular.actors import attention_kernels
from funicular.actors.attention import ROWS_ATTENTION, attention_arguments, rows_attention
from funicular.actors.layout import Layout
from funicular.actors.tree_attention import tree_attention
from funicular.actors.tree_blocks import tree_batches
from tests.layouts import layouts, paths

CPU = torch.device("cpu")
SCALE = 0.3
LAYOUT = Layout(lengths=(40, 9, 17, 3, 20), parents=(None, 0, 0, 0, None))


class Module:
    """What the attention function looks at in a model's layer."""

    is_causal = True


def states(layout: Layout, heads: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, sum(layout.lengths), heads, 8)  # as layers make them: heads are not the outer dimension in memory
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def attended(layout: Layout, leaves: tuple[torch.Tensor, ...]) -> torch.Tensor:
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    out, _ = rows_attention(Module(), q, k, v, None, scaling=SCALE, **attention_arguments(ROWS_ATTENTION, layout, CPU))
    return out[0]


def row_by_row(layout: Layout, leaves: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(T, heads, d): each span's last part of its row's attention."""
    parts = []
    for length, path in zip(layout.lengths, paths(layout), strict=True):
        q, k, v = (leaf[0, path].transpose(0, 1) for leaf in leaves)
        k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
        unseen = torch.ones(len(path), len(path), dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(1, 2) * SCALE).masked_fill(unseen, -torch.inf).softmax(-1)
        parts.append((weights @ v)[:, -length:].transpose(0, 1))
    return torch.cat(parts)


def compare(layout: Layout, seed: int) -> None:
    leaves = (states(layout, 4, seed), states(layout, 2, seed + 1), states(layout, 2, seed + 2))
    out, expected = attended(layout, leaves), row_by_row(layout, leaves)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = torch.autograd.grad((out * weight).sum(), leaves)
    for a, b in zip(got, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@settings(deadline=None, max_examples=150)
@given(layouts(longest=30), st.integers(0, 3))
@example(Layout(lengths=(5, 3, 2, 5, 4, 3), parents=(None, 0, 0, None, 3, 3)), 0)  # the later prompt comes first
def test_every_token_sees_its_own_row_alone(layout: Layout, seed: int) -> None:
    compare(layout, seed)


@settings(deadline=None, max_examples=50)
@given(layouts(), st.integers(0, 3))
def test_the_kernel_of_matrix_products_does_the_same(layout: Layout, seed: int) -> None:
    """The one for devices and types for which torch has none that says its logsumexp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("funicular.actors.tree_attention.attend", attention_kernels.plain_attend)
        patch.setattr("funicular.actors.tree_attention.gradients", attention_kernels.plain_gradients)
        compare(layout, seed)


@pytest.mark.parametrize("plain", [False, True])
def test_in_bfloat16_it_is_as_exact_as_the_type(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: on a CPU the kernels get float32."""
    if plain:
        monkeypatch.setattr("funicular.actors.tree_attention.attend", attention_kernels.plain_attend)
        monkeypatch.setattr("funicular.actors.tree_attention.gradients", attention_kernels.plain_gradients)
    leaves = tuple(states(LAYOUT, heads, heads, torch.bfloat16) for heads in (4, 2, 2))
    exact = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    q, k, v = (leaf[0].transpose(0, 1) for leaf in leaves)
    out = tree_attention(q, k, v, tree_batches(LAYOUT, CPU), scale=SCALE)
    expected = row_by_row(LAYOUT, exact)
    assert out.dtype == torch.bfloat16
    assert relative(out, expected) < 5e-3
    got = torch.autograd.grad(out.float().square().sum(), leaves)
    for a, b in zip(got, torch.autograd.grad(expected.square().sum(), exact), strict=True):
        assert relative(a, b) < 1e-2


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a.double() - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("layout", [LAYOUT, Layout.of_rows((40, 9, 17))])
def test_on_a_cpu_bfloat16_goes_through_float32(layout: Layout) -> None:
    """Also under autocast, where a norm of queries and keys leaves them in float32 and values are bfloat16."""
    types = (torch.float32, torch.float32, torch.bfloat16)
    leaves = tuple(states(layout, heads, heads, dtype) for heads, dtype in zip((4, 2, 2), types, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attended(layout, leaves)
    expected = row_by_row(layout, tuple(leaf.double() for leaf in leaves))
    assert out.dtype == torch.bfloat16
    assert float((out == expected.bfloat16()).float().mean()) > 0.99  # rounded once, at the end
    out.float().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == list(types)


@pytest.mark.parametrize("option", [{"sliding_window": 4}, {"softcap": 2.0}])
def test_windows_and_soft_caps_are_refused(option: dict[str, Any]) -> None:
    layout = Layout(lengths=(5, 3, 2), parents=(None, 0, 0))
    x = torch.zeros(1, 2, 10, 8)
    with pytest.raises(ValueError, match="which a shared prompt is not computed with"):
        rows_attention(Module(), x, x, x, None, **option, **attention_arguments(ROWS_ATTENTION, layout, CPU))


def test_an_implementation_that_knows_rows_only_is_an_error() -> None:
    layout = Layout(lengths=(5, 3, 2), parents=(None, 0, 0))
    with pytest.raises(ValueError, match="flash_attention_2 knows no rows that share their beginnings"):
        attention_arguments("flash_attention_2", layout, CPU)


def largest(run: Callable[[], Any]) -> int:
    """Elements of the largest tensor that is made."""
    from tests.unit.actors.test_token_logprobs import LargestTensor

    with LargestTensor() as seen:
        run()
    return seen.elements


def test_no_mask_and_no_scores_of_the_pass_exist() -> None:
    layout = Layout(lengths=(2000, *[100] * 16), parents=(None, *[0] * 16))
    leaves = tuple(states(layout, 1, seed, torch.float32) for seed in range(3))
    assert largest(lambda: attended(layout, leaves).sum().backward()) <= 8 * sum(layout.lengths)


def test_short_spans_are_not_computed_as_long_ones() -> None:
    """Four prompts could take one completion of 128 along within the waste that a batch is allowed."""
    lengths = [1000, *[128] * 8] * 4
    parents = [start if index else None for start in range(0, 36, 9) for index in range(9)]
    batches = tree_batches(Layout(lengths=tuple(lengths), parents=tuple(parents)), CPU)
    assert [(own.rows, own.width) for own in batches.own] == [(4, 1000), (32, 128)]
    assert [(batch.keys.rows, batch.keys.width) for batch in batches.shared] == [(4, 1000)]


def test_spans_of_some_tens_of_tokens_share_a_call() -> None:
    batches = tree_batches(Layout(lengths=(45, 16, 24, 32), parents=(None, 0, 0, 0)), CPU)
    assert [(own.rows, own.width) for own in batches.own] == [(4, 45)]
