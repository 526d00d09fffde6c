from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from funicular.actors import activation_offload
from funicular.actors.activation_offload import offloaded_activations
from funicular.actors.layout import Layout
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing
from tests.random_models import random_model

LENGTHS = (300, 200, 12)
LAYERS = 2


def gradients(*, offload: bool, checkpointing: bool) -> list[torch.Tensor]:
    model = random_model("llama")
    policy = PolicyModel(model, compute_dtype=torch.float32, packing=True, offload_activations=offload)
    if checkpointing:
        enable_gradient_checkpointing(model)
    total = sum(LENGTHS)
    ids = torch.randint(60, (1, total), generator=torch.Generator().manual_seed(0))
    layout = Layout.of_rows(LENGTHS)
    positions = layout.positions(torch.device("cpu"))
    logprobs, _ = policy(ids, None, positions, torch.arange(249), ids[0, 1:250], temperature=1.0, layout=layout)
    logprobs.sum().backward()
    return [p.grad for p in policy.parameters()]


def test_the_gradient_is_the_same_to_the_bit() -> None:
    expected = gradients(offload=False, checkpointing=True)
    assert all(torch.equal(*pair) for pair in zip(gradients(offload=True, checkpointing=True), expected, strict=True))


def test_of_checkpointed_layers_only_the_inputs_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = activation_offload._pack
    copied: list[torch.Size] = []

    def recording(tensor: torch.Tensor, least_bytes: int) -> Any:
        packed = pack(tensor, least_bytes)
        if packed[1] is not tensor:
            copied.append(tensor.shape)
        return packed

    monkeypatch.setattr(activation_offload, "_pack", recording)
    gradients(offload=True, checkpointing=True)
    hidden = torch.Size((1, sum(LENGTHS), 32))
    assert copied == [hidden] * (LAYERS + 3)  # the last norm, which is not checkpointed, saves three


def test_parameters_and_small_tensors_stay_and_the_rest_is_freed() -> None:
    weight = torch.nn.Parameter(torch.ones(200, 200))
    x = torch.ones(3, 200, requires_grad=True)
    seen: list[Any] = []
    with offloaded_activations(least_bytes=4 * 200 * 200):
        y = (x @ weight).sum()
    with saved_tensors_hooks(lambda t: seen.append(t), lambda t: t):
        (x @ weight).sum()
    assert weight in {t for t in seen if isinstance(t, torch.nn.Parameter)}
    y.backward()
    assert torch.equal(weight.grad, torch.full((200, 200), 3.0))
    assert activation_offload._pack(weight, 0)[1] is weight
    host = activation_offload._pack(x, 0)[1]
    assert host.data_ptr() != x.data_ptr()
    assert torch.equal(host, x)
