from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors.head import OutputHead, check_logits, logit_map_of, refuse_adapted_head
from funicular.actors.policy import PolicyModel, load_causal_lm
from funicular.actors.token_logprobs import LogitMap
from funicular.actors.weight_packing import weights_of
from tests.random_models import random_model
from tests.tiny import make_tiny_model

MODELS: list[tuple[str, dict[str, Any], LogitMap]] = [
    ("llama", {"tie_word_embeddings": True}, LogitMap()),
    ("gemma2", {"final_logit_softcapping": 5.0}, LogitMap(softcap=5.0)),
    ("cohere", {"logit_scale": 0.25}, LogitMap(scale=0.25)),
    ("granite", {"logits_scaling": 8.0}, LogitMap(scale=0.125)),
]


@pytest.mark.parametrize(("architecture", "options", "expected"), MODELS)
def test_known_maps_are_read_from_the_configuration(
    architecture: str, options: dict[str, Any], expected: LogitMap
) -> None:
    model = random_model(architecture, **options)
    assert logit_map_of(model.config) == expected
    policy = PolicyModel(model, compute_dtype=torch.float32)
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(0))
    predictors = torch.tensor([2, 3, 7, 9, 9 + 4])
    labels = ids.reshape(-1)[predictors + 1]
    mask, positions = torch.ones_like(ids), torch.arange(9).expand(2, 9)
    logprobs, entropies = policy(ids, mask, positions, predictors, labels, temperature=0.7)
    logits = model(input_ids=ids).logits / 0.7
    all_logprobs = torch.log_softmax(logits, -1).reshape(18, 60)[predictors]
    torch.testing.assert_close(logprobs, all_logprobs.gather(1, labels[:, None])[:, 0])
    torch.testing.assert_close(entropies, -(all_logprobs.exp() * all_logprobs).sum(-1))


def changed(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The model with logits that its configuration does not tell of."""
    plain = model.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        out = plain(*arguments, **options)
        out.logits = change(out.logits)
        return out

    model.forward = forward
    return model


@pytest.mark.parametrize(
    "change", [lambda z: z * 1.01, lambda z: 30 * torch.tanh(z / 30), lambda z: z + torch.arange(60.0)]
)
def test_a_map_that_the_configuration_does_not_tell_of_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Small logits too: a soft-cap of 30 would hardly show in them."""
    model = random_model("llama")
    for parameter in model.parameters():
        parameter.data.mul_(0.01)
    with pytest.raises(ValueError, match=r"model\.path: LlamaForCausalLM changes its logits"):
        PolicyModel(changed(model, change), compute_dtype=torch.float32)


def test_a_bfloat16_model_with_a_soft_cap_is_accepted() -> None:
    model = random_model("gemma2", final_logit_softcapping=5.0).bfloat16()
    PolicyModel(model, compute_dtype=torch.bfloat16)


def test_decoder_states_that_are_not_the_heads_are_refused() -> None:
    model = random_model("llama")
    ids = torch.arange(4)[None]
    hidden = model.model(input_ids=ids).last_hidden_state
    check_logits(model, ids, hidden)
    with pytest.raises(ValueError, match="changes its logits"):
        check_logits(model, ids, hidden * 1.1 + 0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_no_second_weight(tmp_path: Path, tied: bool) -> None:
    model = load_causal_lm(make_tiny_model(tmp_path, tied=tied), torch.float32)
    names = [name for name, _ in model.named_parameters()]
    weights = [weight.name for weight in weights_of(model)]
    state = set(model.state_dict())
    policy = PolicyModel(model, compute_dtype=torch.float32)
    assert policy.head.weight is model.get_output_embeddings().weight
    assert [name for name, _ in policy.named_parameters()] == [f"causal_lm.{name}" for name in names]
    assert [weight.name for weight in weights_of(policy.causal_lm)] == weights
    assert set(policy.state_dict()) == {f"causal_lm.{name}" for name in state}
    other = PolicyModel(load_causal_lm(tmp_path, torch.float32), compute_dtype=torch.float32)
    with torch.no_grad():
        policy.head.weight.add_(1.0)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.head.weight, policy.head.weight)


def test_a_head_in_float32_multiplies_in_float32_under_autocast() -> None:
    model = random_model("llama")
    hidden = torch.randn(7, 32)
    labels = torch.randint(60, (7,))
    exact, _ = OutputHead(model)(hidden, labels, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = OutputHead(model)(hidden, labels, 1.0)
        high, _ = OutputHead(model, dtype="float32")(hidden, labels, 1.0)
    assert torch.equal(high, exact)
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0, atol=0.1)


def test_adapters_on_the_head_are_refused_by_name() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = random_model("llama", tie_word_embeddings=False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"), model)
    refuse_adapted_head(model)
    model = random_model("llama", tie_word_embeddings=False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), model)
    with pytest.raises(ValueError, match=r"learner\.lora_targets: lm_head is the output head"):
        refuse_adapted_head(model)
