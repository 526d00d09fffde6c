from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from funicular.actors.collate import Batch, collate, token_batch
from funicular.actors.config import AlgorithmConfig
from funicular.actors.layout import Layout
from funicular.actors.packing import MicroBatch, SharePrompts
from funicular.actors.policy import PolicyModel, load_causal_lm
from funicular.actors.step_plan import plan_step
from funicular.actors.types import GroupPayload
from tests.builders import make_group, make_payload
from tests.random_models import random_model
from tests.tiny import make_tiny_model

CPU = torch.device("cpu")
LENGTHS = {"a": ([3, 9, 1, 7], 5), "b": ([2, 2, 4, 30], 11)}


def batch(
    *, packed: bool, micro_batch_tokens: int = 10_000, share_prompts: SharePrompts = "off"
) -> tuple[list[MicroBatch], dict[str, GroupPayload]]:
    groups = [
        make_group(name, rewards_G=[1.0, 0.0, 0.0, 2.0], lengths_G=lengths, prompt_tokens=prompt)
        for name, (lengths, prompt) in LENGTHS.items()
    ]
    payloads = {
        name: make_payload(name, lengths_G=lengths, prompt_tokens=prompt) for name, (lengths, prompt) in LENGTHS.items()
    }
    cut = (1, micro_batch_tokens, 30)
    plan = plan_step(groups, AlgorithmConfig(), *cut, packed=packed, share_prompts=share_prompts)
    return list(plan.ranks[0].optimizer_batches[0]), payloads


@pytest.mark.parametrize(
    ("packed", "share_prompts", "shape"),
    [(False, "off", (8, 41)), (True, "off", (1, 122)), (True, "on", (1, 74))],
)
def test_each_trained_token_has_its_rows_values(
    packed: bool, share_prompts: SharePrompts, shape: tuple[int, int]
) -> None:
    (micro,), payloads = batch(packed=packed, share_prompts=share_prompts)
    made = collate(micro, payloads, CPU, packed=packed)
    assert made.input_ids.shape == made.position_ids.shape == shape
    token = 0
    for index, row in enumerate(micro.rows):
        payload = payloads[row.group_id]
        part = payload.completion(row.completion)
        for offset, token_id in enumerate(payload.token_ids[part]):
            place = int(made.predictors[token])
            before = payload.token_ids[part][offset - 1] if offset else payload.prompt_ids[-1]
            assert int(made.input_ids.reshape(-1)[place]) == before
            assert int(made.position_ids.reshape(-1)[place]) == row.prompt_tokens + offset - 1
            assert int(made.labels[token]) == token_id
            assert int(made.segments.ids[token]) == index
            assert float(made.advantages[token]) == np.float32(row.advantage)
            assert float(made.token_weights[token]) == np.float32(row.token_weight)
            assert float(made.generator_logprobs[token]) == payload.generator_logprobs[part][offset]
            token += 1
    assert token == len(made.predictors) == len(made.labels) == len(made.segments.ids)


def test_a_shared_prompt_stands_once_before_its_completions() -> None:
    (micro,), payloads = batch(packed=True, share_prompts="on")
    made = collate(micro, payloads, CPU, packed=True)
    assert made.layout == Layout(lengths=(11, 30, 4, 2, 2, 5, 9, 7, 3, 1), parents=(None, 0, 0, 0, 0, None, 5, 5, 5, 5))
    assert made.rows == (("b", 3), ("b", 2), ("b", 0), ("b", 1), ("a", 1), ("a", 3), ("a", 0), ("a", 2))
    assert made.input_ids[0, :11].tolist() == payloads["b"].prompt_ids.tolist()
    assert made.input_ids[0, 49:54].tolist() == payloads["a"].prompt_ids.tolist()
    firsts = made.predictors[[0, 30, 34, 36]]
    assert firsts.tolist() == [10, 10, 10, 10]  # one prediction of the prompt's last token for each completion


def run(policy: PolicyModel, made: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs, entropies = policy(
        made.input_ids,
        made.attention_mask,
        made.position_ids,
        made.predictors,
        made.labels,
        temperature=0.9,
        layout=made.layout,
    )
    (made.token_weights * (logprobs * made.advantages - 0.1 * entropies)).sum().backward()
    return logprobs.detach(), entropies.detach()


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 64])
def test_packed_and_padded_rows_give_the_same_values_and_gradient(tmp_path: Path, micro_batch_tokens: int) -> None:
    folder = make_tiny_model(tmp_path)
    gradients, totals = [], []
    for packed in (True, False):
        policy = PolicyModel(load_causal_lm(folder, torch.float32), compute_dtype=torch.float32, packing=packed)
        micros, payloads = batch(packed=packed, micro_batch_tokens=micro_batch_tokens)
        of_row = {}
        for micro in micros:
            made = collate(micro, payloads, CPU, packed=packed)
            logprobs, entropies = run(policy, made)
            for index, row in enumerate(micro.rows):
                mine = made.segments.ids == index
                of_row[row.group_id, row.completion] = torch.stack([logprobs[mine], entropies[mine]])
        gradients.append([p.grad for p in policy.parameters()])
        totals.append(of_row)
    assert totals[0].keys() == totals[1].keys()
    for key, values in totals[0].items():
        torch.testing.assert_close(values, totals[1][key], rtol=1e-5, atol=1e-5)
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())


@pytest.mark.parametrize("packed", [False, True])
def test_a_pass_without_rows_runs_and_gives_no_gradient(tmp_path: Path, packed: bool) -> None:
    policy = PolicyModel(random_model("llama"), compute_dtype=torch.float32, packing=packed)
    made = collate(MicroBatch(trees=()), {}, CPU, packed=packed)
    assert made.is_empty
    run(policy, made)
    assert all(not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("packed", [False, True])
def test_a_soft_cap_of_attention_is_kept_in_padded_rows_too(tmp_path: Path, packed: bool) -> None:
    model = random_model("gemma2", attn_logit_softcapping=1.0)
    model.save_pretrained(tmp_path)
    ids = list(range(3, 20))
    model.set_attn_implementation("eager")
    expected = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    policy = PolicyModel(load_causal_lm(tmp_path, torch.float32), compute_dtype=torch.float32, packing=packed)
    made = token_batch(ids, CPU, packed=packed)
    logprobs, _ = policy(
        made.input_ids,
        made.attention_mask,
        made.position_ids,
        made.predictors,
        made.labels,
        temperature=1.0,
        layout=made.layout,
    )
    torch.testing.assert_close(logprobs, expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
