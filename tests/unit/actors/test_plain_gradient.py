"""The plain gradient: truly float64, and that of the loss of the whole batch at once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funicular.actors.advantage import group_advantages
from funicular.actors.config import AlgorithmConfig
from funicular.actors.drift import drift
from funicular.actors.in_float64 import in_float64
from funicular.actors.loss import loss_from_tensors
from funicular.actors.losses.presets import preset_of
from funicular.actors.plain_gradient import OptimizerBatch, add_gradient, row_logprobs
from funicular.actors.plain_sampler import sample, stop_ids_of
from funicular.actors.policy import load_causal_lm
from funicular.rewards.config import RewardConfig
from tests.builders import make_group, make_payload
from tests.tiny import make_tiny_model

TEMPERATURE = 0.9
LIMIT = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def double_model(folder: Path) -> Any:
    model = load_causal_lm(folder, torch.float32)
    model.set_attn_implementation("eager")
    return model.double()


def batch(algorithm: AlgorithmConfig) -> OptimizerBatch:
    """Three groups; a void completion, truncated ones, and a group without variance."""
    shapes: list[tuple[list[float | None], list[int]]] = [
        ([0.0, 1.0, 0.5], [3, 9, 2]),
        ([1.0, None, 0.0], [4, 2, 9]),
        ([1.0, 1.0, 1.0], [5, 1, 2]),
    ]
    groups = tuple(
        make_group(f"g{i}", rewards_G=r, lengths_G=n, truncated_G=[length == LIMIT for length in n])
        for i, (r, n) in enumerate(shapes)
    )
    return OptimizerBatch(
        groups=groups,
        payloads={
            group.group_id: make_payload(group.group_id, lengths_G=group.generation.lengths_G) for group in groups
        },
        rewards=RewardConfig(),
        algorithm=algorithm,
        temperature=TEMPERATURE,
        max_completion_tokens=LIMIT,
    )


def loss_and_gradient(model: Any, of: OptimizerBatch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = add_gradient(model, of, None)
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("context", "is_float64"), [(in_float64, True), (nullcontext, False)])
def test_the_gradient_is_that_of_finite_differences_in_float64_only(
    folder: Path, context: type[AbstractContextManager[None]], is_float64: bool
) -> None:
    # bypass: the loss's value depends on the parameters through the policy's log-probabilities alone
    of = batch(AlgorithmConfig(old_logprobs="generator", epsilon_low=0.9, epsilon_high=50.0))
    model = double_model(folder)
    with context():
        _, gradient = loss_and_gradient(model, of)
        generator = torch.Generator().manual_seed(0)
        direction = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
        }

        def along(step: float) -> float:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.add_(step * direction[name])
            loss, _ = loss_and_gradient(model, of)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.sub_(step * direction[name])
            return loss

        h = 1e-5
        # the fourth-order formula: its own error is far below
        slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    expected = float(sum((gradient[name] * direction[name]).sum() for name in gradient))
    assert (abs(slope - expected) / abs(expected) < 1e-8) == is_float64


@pytest.mark.parametrize(
    "algorithm",
    [
        AlgorithmConfig(),
        AlgorithmConfig(loss="dapo"),
        AlgorithmConfig(loss="dr_grpo", mask_truncated_completions=True),
        AlgorithmConfig(loss="luspo"),
        AlgorithmConfig(aggregation="prompt", scale_rewards="none"),
        AlgorithmConfig(loss="dapo", zero_variance_groups="drop"),
    ],
)
def test_row_by_row_it_is_the_gradient_of_all_rows_at_once(folder: Path, algorithm: AlgorithmConfig) -> None:
    of, preset = batch(algorithm), preset_of(algorithm)
    model = double_model(folder)
    with in_float64():
        _, gradient = loss_and_gradient(model, of)
        model.zero_grad()
        counted = of.groups[:2] if algorithm.zero_variance_groups == "drop" else of.groups
        advantages = group_advantages([group.rewards_G for group in counted], preset.scale_rewards)
        logprobs, generator, mask, flat, groups = [], [], [], [], []
        for index, (group, advantages_G) in enumerate(zip(counted, advantages, strict=True)):
            payload = of.payloads[group.group_id]
            for completion, advantage in enumerate(advantages_G):
                if advantage is None:
                    continue
                part = payload.completion(completion)
                ids = torch.from_numpy(np.concatenate([payload.prompt_ids, payload.token_ids[part]]).astype(np.int64))
                start = len(payload.prompt_ids)
                logits = model(input_ids=ids[None]).logits[0, start - 1 : -1] / TEMPERATURE
                logprobs.append(torch.log_softmax(logits, -1).gather(1, ids[start:, None])[:, 0])
                generator.append(torch.from_numpy(payload.generator_logprobs[part].astype(np.float64)))
                masked = algorithm.mask_truncated_completions and group.generation.truncated_G[completion]
                mask.append(torch.full((len(ids) - start,), float(not masked)))
                flat.append(advantage)
                groups.append(index)

        def padded(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

        loss_from_tensors(
            padded(logprobs),
            padded(logprobs).detach(),
            torch.tensor(flat),
            padded(mask),
            aggregation=preset.aggregation,
            max_completion_tokens=LIMIT,
            epsilon_low=preset.epsilon_low,
            epsilon_high=preset.epsilon_high,
            ratio_level=preset.ratio_level,
            generator_logprobs=padded(generator),
            importance_cap=2.0,
            groups=torch.tensor(groups),
        ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - gradient[name]).norm() / parameter.grad.norm()
        assert difference < 1e-12, name


def test_drift_is_the_same_everywhere_small_and_moves_zeros(folder: Path) -> None:
    moved, again, initial = (load_causal_lm(folder, torch.float32) for _ in range(3))
    frozen = "model.layers.0.mlp.up_proj.weight"
    for model in (moved, again):
        model.get_parameter(frozen).requires_grad_(False)
        with torch.no_grad():
            model.get_parameter("model.norm.weight").zero_()
        drift(model, seed=1)
    for name, parameter in moved.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        change = (parameter - initial.get_parameter(name)).norm() / initial.get_parameter(name).norm()
        assert (change == 0) == (name == frozen)
        assert change < 0.004 or name == "model.norm.weight"
    assert 0 < moved.get_parameter("model.norm.weight").abs().max() < 0.01


def test_completions_carry_the_log_probabilities_of_their_tokens(folder: Path) -> None:
    model = load_causal_lm(folder, torch.float32)
    prompt, limits = list(range(3, 12)), [2, 5, 9]
    generator = torch.Generator().manual_seed(0)
    completions = sample(
        model, prompt, limits, temperature=TEMPERATURE, stop_ids=stop_ids_of(model), generator=generator
    )
    for completion, limit in zip(completions, limits, strict=True):
        ended = completion.token_ids[-1] in stop_ids_of(model)
        assert len(completion.token_ids) <= limit
        assert ended or len(completion.token_ids) == limit
        assert completion.truncated == (limit == 9 and not ended)
        assert not stop_ids_of(model) & set(completion.token_ids[:-1])
        ids = torch.tensor([prompt + completion.token_ids])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / TEMPERATURE, -1)
        expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-5)


def test_log_probabilities_are_of_valid_completions_only(folder: Path) -> None:
    found = row_logprobs(double_model(folder), batch(AlgorithmConfig()))
    assert ("g1", 1) not in found
    assert found["g1", 2].shape == (9,)
    assert len(found) == 8
