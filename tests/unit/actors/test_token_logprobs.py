from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from funicular.actors.token_logprobs import LogitMap, Tiling, token_logprobs

ONE_TILE = Tiling(tokens=1000, vocabulary=1000, kept_bytes=0)
MAPS = [LogitMap(), LogitMap(scale=0.25), LogitMap(softcap=3.0), LogitMap(scale=2.5, softcap=2.0)]


def inputs(
    tokens: int, vocabulary: int = 13, width: int = 5, dtype: torch.dtype = torch.float64, bias: bool = True
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    return {
        "hidden": normal(tokens, width),
        "weight": normal(vocabulary, width),
        "labels": torch.randint(vocabulary, (tokens,), generator=generator),
        "bias": normal(vocabulary, scale=0.3) if bias else None,
    }


def materialised(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    logit_map: LogitMap | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the definition, with all logits."""
    logit_map = logit_map or LogitMap()
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * logit_map.scale
    if logit_map.softcap is not None:
        logits = logit_map.softcap * torch.tanh(logits / logit_map.softcap)
    logprobs_V = torch.log_softmax(logits / temperature, -1)
    return logprobs_V.gather(1, labels[:, None])[:, 0], -(logprobs_V.exp() * logprobs_V).sum(1)


def gradients(function: Any, given: dict[str, Any], coefficients: tuple[float, float], **options: Any) -> list[Any]:
    """Values and the gradients of a weighted sum of them."""
    logprobs, entropies = function(**given, **options)
    ramp = torch.arange(1, len(logprobs) + 1, dtype=logprobs.dtype).cos()
    loss = (coefficients[0] * ramp * logprobs).sum() + (coefficients[1] * (1 - ramp) * entropies).sum()
    leaves = [x for x in (given["hidden"], given["weight"], given["bias"]) if x is not None and x.requires_grad]
    return [logprobs, entropies, *torch.autograd.grad(loss, leaves)]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0 if got.shape == expected.shape else float("inf")
    return float(
        (got.detach().double() - expected.detach().double()).norm()
        / expected.detach().double().norm().clamp(min=1e-300)
    )


@pytest.mark.parametrize("logit_map", MAPS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_gradients_are_those_of_finite_differences(logit_map: LogitMap, temperature: float, kept_bytes: int) -> None:
    given = inputs(3, vocabulary=7, width=2)
    tiling = Tiling(tokens=2, vocabulary=3, kept_bytes=kept_bytes)

    def function(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(
            hidden,
            weight,
            given["labels"],
            bias=bias,
            temperature=temperature,
            logit_map=logit_map,
            tiling=tiling,
        )

    assert torch.autograd.gradcheck(function, (given["hidden"], given["weight"], given["bias"]), atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(0, 9),
    tile_tokens=st.integers(1, 10),
    tile_vocabulary=st.integers(1, 15),
    kept=st.booleans(),
    logit_map=st.sampled_from(MAPS),
    temperature=st.sampled_from([1.0, 0.6, 1.7]),
    coefficients=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)]),
    bias=st.booleans(),
)
def test_no_tiling_changes_values_or_gradients(
    tokens: int,
    tile_tokens: int,
    tile_vocabulary: int,
    kept: bool,
    logit_map: LogitMap,
    temperature: float,
    coefficients: tuple[float, float],
    bias: bool,
) -> None:
    given = inputs(tokens, bias=bias)
    tiling = Tiling(tokens=tile_tokens, vocabulary=tile_vocabulary, kept_bytes=kept << 30)
    options = {"temperature": temperature, "logit_map": logit_map}
    expected = gradients(materialised, given, coefficients, **options)
    for got, value in zip(
        gradients(token_logprobs, given, coefficients, tiling=tiling, **options), expected, strict=True
    ):
        assert relative_error(got, value) < 1e-12


@pytest.mark.parametrize("logit_map", MAPS)
def test_float32_is_as_good_as_materialised_float32(logit_map: LogitMap) -> None:
    exact = inputs(40, vocabulary=700, width=32)
    single = {k: x.detach().float().requires_grad_() if x.is_floating_point() else x for k, x in exact.items()}
    exact = {k: x.detach().double().requires_grad_() if x.is_floating_point() else x for k, x in single.items()}
    tiling = Tiling(tokens=7, vocabulary=64, kept_bytes=0)
    options = {"temperature": 0.9, "logit_map": logit_map}
    expected = gradients(materialised, exact, (1.0, 0.1), **options)
    for got, value in zip(
        gradients(token_logprobs, single, (1.0, 0.1), tiling=tiling, **options), expected, strict=True
    ):
        assert got.dtype == torch.float32
        assert relative_error(got, value) < 2e-6


def test_bfloat16_products_are_summed_in_float32() -> None:
    """Of values that bfloat16 holds, so that only the products' rounding is left: 2^-9 each, not summed up."""
    half = inputs(50, vocabulary=4000, width=64, dtype=torch.bfloat16, bias=False)
    half["weight"] = (half["weight"].detach() / 8).requires_grad_()
    exact = {k: None if x is None else x.detach().double() if x.is_floating_point() else x for k, x in half.items()}
    for name in ("hidden", "weight"):
        exact[name].requires_grad_()
    expected = gradients(materialised, exact, (1.0, 0.1))
    got = gradients(token_logprobs, half, (1.0, 0.1), tiling=Tiling(tokens=10, vocabulary=100, kept_bytes=0))
    assert [x.dtype for x in got] == [torch.float32] * 2 + [torch.bfloat16] * 2
    errors = [relative_error(*pair) for pair in zip(got, expected, strict=True)]
    assert max(errors[:2]) < 5e-4
    assert max(errors[2:]) < 3e-3  # sums in bfloat16: 5e-3
    # bfloat16 sums over 4,000 words would be off by whole per cents, and to one side.
    assert float((got[1].detach().double() - expected[1].detach()).mean().abs()) < 2e-4 * float(
        expected[1].detach().mean()
    )


def test_products_in_bfloat16_and_float32_of_other_types() -> None:
    given = inputs(6, vocabulary=30, dtype=torch.float32)
    low = gradients(token_logprobs, given, (1.0, 0.0), product_dtype=torch.bfloat16)
    high = gradients(token_logprobs, given, (1.0, 0.0))
    assert all(x.dtype == torch.float32 for x in low)
    assert all(1e-5 < relative_error(*pair) < 2e-2 for pair in zip(low, high, strict=True))
    half = {k: x.detach().bfloat16().requires_grad_() if x.is_floating_point() else x for k, x in given.items()}
    widened = {k: x.detach().float().requires_grad_() if x.is_floating_point() else x for k, x in half.items()}
    got = gradients(token_logprobs, half, (1.0, 0.0), product_dtype=torch.float32)
    expected = gradients(materialised, widened, (1.0, 0.0))
    assert relative_error(got[0], expected[0]) < 1e-6
    assert all(relative_error(a, b) < 2**-8 for a, b in zip(got[2:], expected[2:], strict=True))


def test_autocast_changes_nothing() -> None:
    given = inputs(6, dtype=torch.float32)
    expected = gradients(token_logprobs, given, (1.0, 1.0), tiling=ONE_TILE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(token_logprobs, given, (1.0, 1.0), tiling=ONE_TILE)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    given = inputs(5)
    expected = dict(
        zip(
            ("hidden", "weight", "bias"), gradients(token_logprobs, given, (1.0, 0.5), tiling=ONE_TILE)[2:], strict=True
        )
    )
    thawed = given | {frozen: given[frozen].detach()}
    got = gradients(token_logprobs, thawed, (1.0, 0.5), tiling=Tiling(tokens=2, vocabulary=4, kept_bytes=0))[2:]
    rest = [expected[name] for name in expected if name != frozen]
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(got, rest, strict=True))


def test_large_logits_neither_overflow_nor_lose_the_entropy() -> None:
    given = inputs(5, dtype=torch.float32, bias=False)
    given["hidden"] = (given["hidden"].detach() * 1e4).requires_grad_()
    got = gradients(token_logprobs, given, (1.0, 1.0), tiling=Tiling(tokens=2, vocabulary=3, kept_bytes=0))
    assert all(torch.isfinite(x).all() for x in got)
    shifted = {k: x.detach().double() for k, x in inputs(5).items()}
    shifted["labels"] = shifted["labels"].long()
    plain = token_logprobs(**{k: x.float() if x.is_floating_point() else x for k, x in shifted.items()})[1]
    shifted["bias"] = shifted["bias"] + 3000.0
    far = token_logprobs(**{k: x.float() if x.is_floating_point() else x for k, x in shifted.items()})[1]
    torch.testing.assert_close(far, plain, rtol=2e-3, atol=0)


def test_nan_stays_in_its_row_and_an_unknown_label_is_nan() -> None:
    given = inputs(4, dtype=torch.float32)
    with torch.no_grad():
        given["hidden"][1, 0] = torch.nan
    given["labels"][3] = 13
    logprobs, entropies = token_logprobs(**given, tiling=Tiling(tokens=3, vocabulary=4, kept_bytes=0))
    assert torch.isnan(logprobs).tolist() == [False, True, False, True]
    assert torch.isnan(entropies).tolist() == [False, True, False, False]


def test_backward_twice_gives_the_same() -> None:
    given = inputs(5)
    logprobs, _ = token_logprobs(**given, tiling=Tiling(tokens=3, vocabulary=4, kept_bytes=1 << 20))
    first = torch.autograd.grad(logprobs.sum(), given["weight"], retain_graph=True)
    second = torch.autograd.grad(logprobs.sum(), given["weight"])
    assert torch.equal(first[0], second[0])


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.itemsize)
        return out


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_no_tensor_of_all_tokens_and_words_is_ever_made(softcap: float | None) -> None:
    tokens, vocabulary, width = 300, 500, 4
    given = inputs(tokens, vocabulary, width, dtype=torch.float32)
    tiling = Tiling(tokens=16, vocabulary=32, kept_bytes=tokens * vocabulary * 4 - 1)
    options = {"logit_map": LogitMap(softcap=softcap), "temperature": 0.8}
    with LargestTensor() as seen:
        gradients(token_logprobs, given, (1.0, 1.0), tiling=tiling, **options)
    assert seen.elements == vocabulary * width  # the weight and its gradient
    with LargestTensor() as plain:
        gradients(materialised, given, (1.0, 1.0), **options)
    assert plain.elements == tokens * vocabulary


def test_without_gradient_nothing_is_kept() -> None:
    tokens, vocabulary = 300, 500
    given = inputs(tokens, vocabulary, 4, dtype=torch.float32)
    tiling = Tiling(tokens=16, vocabulary=32, kept_bytes=1 << 30)
    with torch.no_grad(), LargestTensor() as seen:
        logprobs, entropies = token_logprobs(**given, tiling=tiling)
    assert seen.elements == vocabulary * 4
    assert not logprobs.requires_grad
    assert not entropies.requires_grad


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_few_tokens_keep_their_digits_over_a_large_vocabulary(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(50_000, 64, generator=generator) + 0.1
    hidden = 5 * torch.randn(tokens, 64, generator=generator)
    labels = torch.randint(0, len(weight), (tokens,), generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        inputs = hidden.to(dtype, copy=True).requires_grad_()
        token_logprobs(inputs, weight.to(dtype), labels)[0].sum().backward()
        assert inputs.grad is not None
        gradients.append(inputs.grad.double())
    got, expected = gradients
    assert (got - expected).norm() / expected.norm() < 1e-5  # 6e-5 where MKL adds word after word
