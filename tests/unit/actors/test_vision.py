"""The learner's pass over prompts with images gives what transformers gives for each row alone, and its gradient."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from funicular.actors import vision
from funicular.actors.collate import collate
from funicular.actors.packing import MicroBatch, PlannedRow
from funicular.actors.policy import PolicyModel, load_causal_lm, score_batch
from funicular.actors.types import GroupPayload
from tests.tiny_vision import make_tiny_vision_model
from tests.vision_batches import PlainVision, vision_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_vision_model(tmp_path_factory.mktemp("vision")))


@pytest.fixture(scope="module")
def payloads(folder: str) -> dict[str, GroupPayload]:
    return vision_batch(folder)[1]


@pytest.fixture
def policy(folder: str) -> PolicyModel:
    return PolicyModel(load_causal_lm(folder, torch.float32), compute_dtype=torch.float32, packing=True)


def rows(payloads: dict[str, GroupPayload], *groups: str) -> MicroBatch:
    return MicroBatch(
        trees=tuple(
            (
                PlannedRow(
                    group_id=group,
                    completion=i,
                    prompt_tokens=len(payloads[group].prompt_ids),
                    completion_tokens=int(payloads[group].offsets[i + 1] - payloads[group].offsets[i]),
                    advantage=1.0,
                    token_weight=1.0,
                ),
            )
            for group in groups
            for i in range(4)
        )
    )


def plain_logprobs(model: Any, micro: MicroBatch, payloads: dict[str, GroupPayload]) -> torch.Tensor:
    plain, out = PlainVision(model, payloads), []
    for row in micro.rows:
        payload = payloads[row.group_id]
        part = payload.token_ids[payload.completion(row.completion)]
        ids = torch.tensor([[*payload.prompt_ids.tolist(), *part.tolist()]])
        logprobs = plain(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        out.append(logprobs[row.prompt_tokens - 1 :])
    return torch.cat(out)


@pytest.mark.parametrize("groups", [("g0", "g1", "g2", "g3"), ("g2",), ("g1",)], ids=["mixed", "two images", "text"])
def test_logprobs_and_gradient_are_those_of_each_row_alone(
    policy: PolicyModel, payloads: dict[str, GroupPayload], groups: tuple[str, ...]
) -> None:
    assert not policy.packed
    micro = rows(payloads, *groups)
    model = policy.causal_lm
    expected = plain_logprobs(model, micro, payloads)
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    logprobs, _ = score_batch(policy, collate(micro, payloads, CPU), temperature=1.0)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    logprobs.sum().backward()
    for name, parameter in model.named_parameters():
        wanted = gradients.get(name, torch.zeros_like(parameter))
        assert parameter.grad is not None, name
        error = float((parameter.grad - wanted).norm() / wanted.norm().clamp(min=1e-6))
        assert error < 1e-4, (name, error)


def test_each_image_goes_through_the_tower_once_per_pass(
    policy: PolicyModel, payloads: dict[str, GroupPayload], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    tower = policy.causal_lm.model.visual
    tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    batch = collate(rows(payloads, "g0", "g2"), payloads, CPU)
    score_batch(policy, batch, temperature=1.0)
    patches = [payloads[group].images.pixel_values for group in ("g0", "g2")]
    assert seen == [sum(map(len, patches))]


def test_a_placeholder_that_the_policy_sampled_is_text(folder: str, payloads: dict[str, GroupPayload]) -> None:
    """g0's first completion has one at its second token; the image's features stand in the prompt only."""
    batch = collate(rows(payloads, "g0"), payloads, CPU)
    assert batch.images is not None
    placeholder = load_causal_lm(folder, torch.float32).config.image_token_id
    found = (batch.input_ids.flatten() == placeholder).nonzero()[:, 0].tolist()
    places = batch.images.places.tolist()
    assert set(places) < set(found)
    assert len(found) == len(places) + 1


def test_features_that_do_not_fill_the_placeholders_are_refused(
    policy: PolicyModel, payloads: dict[str, GroupPayload]
) -> None:
    batch = collate(rows(payloads, "g0"), payloads, CPU)
    assert batch.images is not None
    fewer = batch.images.places[:-1]
    torn = vision.PassImages(
        pixel_values=batch.images.pixel_values,
        grid_thw=batch.images.grid_thw,
        of_rows=batch.images.of_rows,
        places=fewer,
    )
    with pytest.raises(ValueError, match="placeholders in a pass"):
        policy.predicting_states(
            batch.input_ids, batch.attention_mask, batch.position_ids, batch.predictors, None, torn
        )


def test_a_frozen_tower_has_no_gradient_and_no_adapters(policy: PolicyModel, payloads: dict[str, GroupPayload]) -> None:
    from funicular.actors.config import LearnerConfig
    from funicular.actors.lora import add_adapters, is_adapter_parameter

    model = policy.causal_lm
    vision.freeze(model)
    logprobs, _ = score_batch(policy, collate(rows(payloads, "g0"), payloads, CPU), temperature=1.0)
    logprobs.sum().backward()
    assert {name.startswith("model.visual.") for name, p in model.named_parameters() if p.grad is None} == {True}

    def adapted(freeze: bool) -> set[str]:
        fresh = load_causal_lm(model.config._name_or_path, torch.float32)
        add_adapters(fresh, LearnerConfig(lora_rank=2, freeze_vision=freeze), 0, with_reference=False)
        names = chain(name for name, _ in fresh.named_parameters() if is_adapter_parameter(name))
        return {name.split(".")[1] for name in names}

    assert adapted(freeze=True) == {"language_model"}
    assert adapted(freeze=False) == {"language_model", "visual"}
