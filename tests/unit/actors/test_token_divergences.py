"""Divergences by tiles against their definition with all logits at once, and against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from funicular.actors.logit_tiles import LogitMap, Tiling
from funicular.actors.token_divergences import TeacherStates, token_divergences
from tests.unit.actors.test_token_logprobs import LargestTensor, relative_error

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
MAPS = [LogitMap(), LogitMap(scale=0.5), LogitMap(softcap=2.0)]
SMALL = Tiling(tokens=2, vocabulary=3, kept_bytes=0)
WIDTH, THEIR_WIDTH = 5, 3


def inputs(
    tokens: int, vocabulary: int = 11, their_vocabulary: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Any], TeacherStates]:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = {
        "hidden": normal(tokens, WIDTH).requires_grad_(),
        "weight": normal(vocabulary, WIDTH).requires_grad_(),
        "bias": normal(vocabulary).requires_grad_(),
    }
    words = vocabulary if their_vocabulary is None else their_vocabulary
    teacher = TeacherStates(
        hidden=normal(tokens, THEIR_WIDTH),
        weight=normal(words, THEIR_WIDTH),
        bias=normal(words),
        logit_map=LogitMap(softcap=5.0),
    )
    return student, teacher


def logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, logit_map: LogitMap, temperature: float, words: int
) -> torch.Tensor:
    logits = (hidden @ weight.T + bias) * logit_map.scale
    if logit_map.softcap is not None:
        logits = logit_map.softcap * torch.tanh(logits / logit_map.softcap)
    return (logits[:, :words] / temperature).log_softmax(-1)


def materialised(
    student: dict[str, Any], teacher: TeacherStates, beta: float, temperature: float, logit_map: LogitMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """With torch's own kl_div, whose first argument is what the divergence is taken to."""
    words = min(len(student["weight"]), len(teacher.weight))
    q = logprobs(**student, logit_map=logit_map, temperature=temperature, words=words)
    p = logprobs(teacher.hidden, teacher.weight, teacher.bias, teacher.logit_map, temperature, words)  # type: ignore[arg-type]

    def kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return kl_div(right, left, reduction="none", log_target=True).sum(-1)

    if beta in (0, 1):
        return (kl(p, q) if beta == 0 else kl(q, p)), kl(q, p).detach()
    mixture = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture), kl(q, p).detach()


def everything(found: tuple[torch.Tensor, torch.Tensor], student: dict[str, Any]) -> list[torch.Tensor]:
    """Values, and the gradients of a sum that weighs tokens differently."""
    jsd, kl = found
    weights = torch.arange(1, len(jsd) + 1, dtype=jsd.dtype).cos()
    return [jsd, kl, *torch.autograd.grad((weights * jsd).sum(), list(student.values()))]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("logit_map", MAPS)
def test_values_and_gradients_are_those_of_the_definition(beta: float, logit_map: LogitMap) -> None:
    student, teacher = inputs(7)
    options: dict[str, Any] = {"beta": beta, "temperature": 0.7, "logit_map": logit_map}
    expected = everything(materialised(student, teacher, **options), student)
    for tiling in (SMALL, replace(SMALL, tokens=100, vocabulary=100), None):
        got = everything(token_divergences(**student, teacher=teacher, tiling=tiling, **options), student)
        for mine, theirs in zip(got, expected, strict=True):
            assert relative_error(mine, theirs) < 1e-10


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_are_those_of_finite_differences(beta: float) -> None:
    student, teacher = inputs(3, vocabulary=5)

    def function(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"beta": beta, "temperature": 1.3, "logit_map": LogitMap(softcap=2.0)}
        return token_divergences(hidden, weight, teacher, bias=bias, tiling=SMALL, **options)[0]

    assert torch.autograd.gradcheck(function, tuple(student.values()))


@pytest.mark.parametrize("beta", BETAS)
def test_float32_is_close(beta: float) -> None:
    student, teacher = inputs(64, vocabulary=1000)
    single = {name: x.detach().float().requires_grad_() for name, x in student.items()}
    rounded = {name: x.detach().double().requires_grad_() for name, x in single.items()}
    states = replace(
        teacher,
        hidden=teacher.hidden.float(),
        weight=teacher.weight.float(),
        bias=teacher.bias.float(),  # type: ignore[union-attr]
    )
    exact = replace(states, hidden=states.hidden.double(), weight=states.weight.double(), bias=states.bias.double())  # type: ignore[union-attr]
    options: dict[str, Any] = {"beta": beta, "temperature": 1.0, "logit_map": LogitMap()}
    expected = everything(materialised(rounded, exact, **options), rounded)
    got = everything(token_divergences(**single, teacher=states, **options), single)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, theirs) < 2e-6


@pytest.mark.parametrize(("mine", "theirs"), [(11, 13), (13, 11)])
def test_words_that_only_one_output_has_are_left_out_of_both(mine: int, theirs: int) -> None:
    student, teacher = inputs(4, vocabulary=mine, their_vocabulary=theirs)
    options: dict[str, Any] = {"beta": 0.5, "temperature": 1.0, "logit_map": LogitMap()}
    expected = everything(materialised(student, teacher, **options), student)
    got = everything(token_divergences(**student, teacher=teacher, tiling=SMALL, **options), student)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < 1e-10
    assert got[3][11:].abs().sum() == 0


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_have_neither_divergence_nor_gradient(beta: float) -> None:
    student, _ = inputs(4)
    same = TeacherStates(**{name: x.detach() for name, x in student.items()}, logit_map=LogitMap())
    got = everything(token_divergences(**student, teacher=same, beta=beta, temperature=1.0), student)
    for value in got:
        assert value.detach().abs().max() < 1e-14


def test_the_jsd_is_between_zero_and_its_bound_and_symmetric_at_one_half() -> None:
    student, teacher = inputs(50)
    options: dict[str, Any] = {"temperature": 0.1}
    swapped = TeacherStates(**{name: x.detach() for name, x in student.items()}, logit_map=LogitMap())
    for beta in (0.1, 0.5, 0.9):
        jsd, _ = token_divergences(**student, teacher=teacher, beta=beta, **options)
        bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
        assert float(jsd.detach().min()) >= 0
        assert float(jsd.detach().max()) <= bound + 1e-12
    back, _ = token_divergences(
        teacher.hidden, teacher.weight, swapped, bias=teacher.bias, logit_map=teacher.logit_map, beta=0.5, **options
    )
    forth, _ = token_divergences(**student, teacher=teacher, beta=0.5, **options)
    torch.testing.assert_close(back, forth)


def test_no_tensor_has_all_tokens_and_words() -> None:
    student, teacher = inputs(400, vocabulary=300, dtype=torch.float32)
    tiling = Tiling(tokens=20, vocabulary=30, kept_bytes=0)
    with LargestTensor() as largest:
        jsd, _ = token_divergences(**student, teacher=teacher, beta=0.5, temperature=1.0, tiling=tiling)
        jsd.sum().backward()
    assert largest.elements <= max(400 * WIDTH, 300 * WIDTH, 2 * 20 * 30)


def test_only_what_needs_a_gradient_gets_one() -> None:
    student, teacher = inputs(4)
    student["weight"] = student["weight"].detach()
    student["bias"] = None
    jsd, kl = token_divergences(**student, teacher=teacher, beta=0.5, temperature=1.0)
    assert not kl.requires_grad
    jsd.sum().backward()
    assert student["hidden"].grad is not None
