"""Real DeepSpeed ranks against plain PyTorch. About three minutes, most of it imports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.errors import RunStopped
from funicular.actors.fingerprint import column_fingerprint, fingerprint
from funicular.actors.weights import sampled_columns
from tests import plain_policy
from tests.builders import make_group
from tests.learner_batches import LIMIT, batch, distance, load_plain, plan
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
ADAMW = LearnerConfig(learning_rate=1e-2, warmup_steps=3, cpu_threads=1)


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("untied"), tied=False, architecture="qwen2"))


UPDATES = [
    (AlgorithmConfig(loss="grpo"), 60),
    (AlgorithmConfig(loss="grpo"), 10_000),
    (AlgorithmConfig(loss="dr_grpo"), 1),
    (AlgorithmConfig(loss="dr_grpo"), 120),
    (AlgorithmConfig(loss="bnpo"), 60),
    (AlgorithmConfig(loss="bnpo", mask_truncated_completions=True), 120),
    (AlgorithmConfig(loss="grpo", optimizer_batches=2, scale_rewards="batch"), 60),
]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_the_update_is_that_of_one_process_without_packing(
    hosts: dict[int, Hosts], model: str, untied: str, packed: bool, world: int, zero_stage: int
) -> None:
    """The head's type and whether it is tied alternate, so that every stage and number of ranks has both."""
    groups, payloads = batch()
    odd = (zero_stage + world + packed) % 2 == 1
    config = replace(SGD, ranks=world, zero_stage=zero_stage, packing=packed, head_dtype="float32" if odd else "auto")
    model = untied if odd else model
    hosts[world].begin(config, AlgorithmConfig(), model)
    before, *_ = hosts[world].pack()
    for algorithm, tokens in UPDATES:
        hosts[world].step(plan(groups, algorithm, world, tokens, packed=packed), payloads)
        after, *_ = hosts[world].pack()
        plain = load_plain(model, before)
        plain_policy.update(plain, groups, payloads, algorithm, max_completion_tokens=LIMIT, temperature=TEMPERATURE)
        expected = {name: p.detach() for name, p in plain.named_parameters()}
        error = distance(after, expected) / distance(before, expected)
        assert error < 1e-5, (algorithm, tokens)
        before = after


def test_metrics_are_counted_over_ranks_and_micro_batches(hosts: dict[int, Hosts], model: str) -> None:
    groups, payloads = batch()
    found = []
    for world, tokens in [(1, 10_000), (2, 30)]:
        hosts[world].begin(replace(SGD, ranks=world), AlgorithmConfig(), model)
        found.append(hosts[world].step(plan(groups, AlgorithmConfig(), world, tokens), payloads))
        del found[-1]["perf/learner_memory_gib"]
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    plain = load_plain(model)
    rows = [
        row
        for group in plain_policy.valid_rows(groups, payloads, AlgorithmConfig())
        for row in group
        if row["advantage"] != 0
    ]
    with torch.no_grad():
        logprobs = torch.cat([plain_policy.token_logprobs(plain, row, TEMPERATURE) for row in rows])
    generator = torch.cat([row["generator"] for row in rows])
    weights = (logprobs - generator).exp()
    assert found[0]["perf/learner_tokens"] == len(logprobs)
    assert found[0]["mismatch/logprob_abs_mean"] == pytest.approx(float((logprobs - generator).abs().mean()))
    assert found[0]["mismatch/importance_weight_mean"] == pytest.approx(float(weights.clamp(max=2).mean()))
    assert found[0]["mismatch/capped_frac"] == pytest.approx(float((weights > 2).float().mean()))


@pytest.mark.parametrize("tied", [True, False])
def test_published_and_exported_weights_are_the_learners(hosts: dict[int, Hosts], tmp_path: Path, tied: bool) -> None:
    folder = str(make_tiny_model(tmp_path / "model", architecture="qwen2", tied=tied))
    groups, payloads = batch()
    hosts[2].begin(replace(ADAMW, ranks=2, zero_stage=3), AlgorithmConfig(), folder)
    hosts[2].step(plan(groups, AlgorithmConfig(), 2), payloads)
    tensors, manifest, buckets = hosts[2].pack(version=7)
    hosts[2].call("export", str(tmp_path / "export"))

    exported = load_plain(str(tmp_path / "export"))
    named = dict(exported.named_parameters())
    assert tensors.keys() == named.keys()
    assert all(torch.equal(tensors[name], parameter) for name, parameter in named.items())
    initial = dict(load_plain(folder).named_parameters())
    assert not any(torch.equal(tensors[name], parameter) for name, parameter in initial.items())

    assert [bucket.nbytes for bucket in buckets] == list(manifest.bucket_sizes)
    assert [xxhash.xxh3_64_intdigest(bucket.data) for bucket in buckets] == list(manifest.bucket_hashes)
    for entry in manifest.tensors:
        assert entry.fingerprint == fingerprint(tensors[entry.name])
        if len(entry.shape) == 2:
            columns = sampled_columns(entry.shape[1], 7, manifest.columns)
            assert entry.column_fingerprint == column_fingerprint(tensors[entry.name], columns)
    layers = {}
    for entry in manifest.tensors:
        if ".layers." in entry.name:
            layers.setdefault(entry.name.split(".")[2], set()).add(entry.bucket)
    assert all(len(of_layer) == 1 for of_layer in layers.values())

    ids = torch.tensor(manifest.canary.token_ids)
    with torch.no_grad():
        logprobs = exported(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    assert np.allclose(manifest.canary.logprobs, logprobs, atol=1e-5)

    in_bfloat16, *_ = hosts[2].pack(dtype="bfloat16")
    assert all(torch.equal(in_bfloat16[name], t.bfloat16()) for name, t in tensors.items())


def test_an_export_is_a_complete_hugging_face_folder(hosts: dict[int, Hosts], model: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    hosts[1].begin(SGD, AlgorithmConfig(), model)
    hosts[1].call("export", str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": "What is 2 + 2?"}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    out = load_plain(str(tmp_path)).generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize(("lora_rank", "zero_stage"), [(0, 1), (0, 3), (4, 0), (4, 3)])
def test_the_kl_term_is_taken_to_the_initial_model(
    hosts: dict[int, Hosts], model: str, lora_rank: int, zero_stage: int
) -> None:
    algorithm = AlgorithmConfig(beta=0.1)
    groups, payloads = batch()
    config = replace(SGD, ranks=2, zero_stage=zero_stage, lora_rank=lora_rank)
    hosts[2].begin(config, algorithm, model)
    first = hosts[2].step(plan(groups, algorithm, 2), payloads)
    assert first["policy/kl_ref"] == pytest.approx(0, abs=1e-6)
    weights, *_ = hosts[2].pack()
    second = hosts[2].step(plan(groups, algorithm, 2), payloads)

    rows = [row for group in plain_policy.valid_rows(groups, payloads, algorithm) for row in group]
    with torch.no_grad():
        policy, initial = load_plain(model, weights), load_plain(model)
        d = torch.cat(
            [
                plain_policy.token_logprobs(initial, row, TEMPERATURE)
                - plain_policy.token_logprobs(policy, row, TEMPERATURE)
                for row in rows
            ]
        )
    expected = float((d.exp() - d - 1).mean())
    assert expected > 1e-4
    assert second["policy/kl_ref"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_merged_adapters_are_what_peft_merges(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, zero_stage: int
) -> None:
    from peft import PeftModel

    groups, payloads = batch()
    hosts[2].begin(replace(SGD, ranks=2, zero_stage=zero_stage, lora_rank=4), AlgorithmConfig(), model)
    hosts[2].step(plan(groups, AlgorithmConfig(), 2), payloads)
    tensors, *_ = hosts[2].pack()
    hosts[2].call("export", str(tmp_path))
    initial = dict(load_plain(model).named_parameters())
    merged = PeftModel.from_pretrained(load_plain(model), str(tmp_path / "adapter")).merge_and_unload()
    changed = 0
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(tensors[name], parameter, rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensors[name], initial[name])
    assert changed == 2 * 7  # the linear layers of two decoder layers
    exported = dict(load_plain(str(tmp_path)).named_parameters())
    assert all(torch.equal(exported[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_an_adapter_that_is_packed_alone_is_the_one_that_is_merged(
    hosts: dict[int, Hosts], model: str, zero_stage: int
) -> None:
    groups, payloads = batch()
    config = replace(SGD, ranks=2, zero_stage=zero_stage, lora_rank=4, lora_rslora=True)
    hosts[2].begin(config, AlgorithmConfig(), model)
    _, manifest, buckets = hosts[2].pack(version=1, lora="adapter")
    hosts[2].step(plan(groups, AlgorithmConfig(), 2), payloads)
    tensors, later, kept_and_new = hosts[2].pack(version=2, lora="adapter", on=(manifest, buckets))

    assert later.frozen_version == 1
    assert later.frozen_hashes == manifest.frozen_hashes
    assert [bucket.nbytes for bucket in kept_and_new] == list(later.bucket_sizes)
    assert [xxhash.xxh3_64_intdigest(bucket.data) for bucket in kept_and_new] == list(later.bucket_hashes)
    assert all(entry.fingerprint == fingerprint(tensors[entry.name]) for entry in later.tensors)
    for name, parameter in load_plain(model).named_parameters():
        torch.testing.assert_close(tensors[name], parameter, rtol=0, atol=0)
    merged, *_ = hosts[2].pack(version=3)
    adapted = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    assert len(adapted) == 2 * 7
    for layer in adapted:
        product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(tensors[f"{layer}.weight"] + product, merged[f"{layer}.weight"])
        assert product.abs().max() > 0


def test_a_learner_value_that_is_not_finite_stops_the_run_before_the_update(
    hosts: dict[int, Hosts], model: str
) -> None:
    groups, payloads = batch()
    bad = payloads["g0"].generator_logprobs.copy()
    bad[2] = np.nan
    hosts[2].begin(replace(SGD, ranks=2, zero_stage=1), AlgorithmConfig(), model)
    before, *_ = hosts[2].pack()
    poisoned = payloads | {"g0": replace(payloads["g0"], generator_logprobs=bad)}
    with pytest.raises(RunStopped, match="not finite"):
        hosts[2].step(plan(groups, AlgorithmConfig(), 2), poisoned)
    after, *_ = hosts[2].pack()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_batch_without_gradient_makes_no_optimizer_step(hosts: dict[int, Hosts], model: str) -> None:
    groups = [make_group("g", rewards_G=[1.0, 1.0], lengths_G=[3, 3])]
    hosts[2].begin(replace(ADAMW, ranks=2), AlgorithmConfig(), model)
    before, *_ = hosts[2].pack()
    metrics = hosts[2].step(plan(groups, AlgorithmConfig(), 2), {})
    after, *_ = hosts[2].pack()
    assert metrics["policy/optimizer_steps"] == 0
    assert "policy/entropy" not in metrics
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    "options",
    [
        {"compute_dtype": "bfloat16", "zero_stage": 0},
        {"compute_dtype": "bfloat16", "zero_stage": 3},
        {"dtype": "bfloat16", "compute_dtype": "bfloat16", "zero_stage": 1},
        {"dtype": "bfloat16", "compute_dtype": "bfloat16", "zero_stage": 3},
        {"compute_dtype": "bfloat16", "head_dtype": "float32", "zero_stage": 2},
        {"dtype": "bfloat16", "compute_dtype": "bfloat16", "head_dtype": "float32", "zero_stage": 3},
        {"gradient_checkpointing": True, "offload_activations": True, "zero_stage": 3},
        {"gradient_checkpointing": True, "zero_stage": 1, "packing": False},
    ],
)
def test_other_precisions_and_checkpointing_go_the_same_way(
    hosts: dict[int, Hosts], model: str, options: dict[str, Any]
) -> None:
    groups, payloads = batch()
    config = replace(SGD, ranks=2, **options)
    hosts[2].begin(config, AlgorithmConfig(), model)
    before, *_ = hosts[2].pack()
    hosts[2].step(plan(groups, AlgorithmConfig(), 2, packed=config.packing), payloads)
    after, *_ = hosts[2].pack()
    plain = load_plain(model, before)
    plain_policy.update(
        plain, groups, payloads, AlgorithmConfig(), max_completion_tokens=LIMIT, temperature=TEMPERATURE
    )
    expected = {name: p.detach() for name, p in plain.named_parameters()}
    allowed = 1e-5 if "gradient_checkpointing" in options else 0.05
    assert distance(after, expected) / distance(before, expected) < allowed
