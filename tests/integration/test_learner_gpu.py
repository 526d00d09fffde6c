"""One real DeepSpeed rank on a GPU against plain PyTorch on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.fingerprint import fingerprint
from funicular.actors.learner import memory_now
from funicular.actors.token_logprobs import Tiling, token_logprobs
from tests import plain_policy
from tests.learner_batches import LIMIT, batch, distance, load_plain, plan
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny import make_tiny_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
EXACT = 1e-5
COARSE = 0.05
"""Where products are bfloat16."""
COARSEST = 0.12
"""Where parameters and activations are too: 0.084 on an H200, and on a CPU."""
BFLOAT16 = {"dtype": "bfloat16", "compute_dtype": "bfloat16"}


def test_a_rank_tells_its_memory_of_the_gpu() -> None:
    device = torch.device("cuda", 0)
    before = memory_now(device)
    kept = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    after = memory_now(device)
    assert after["gpu"] - before.get("gpu", 0.0) == kept.numel()
    assert after["gpu_reserved"] >= after["gpu"]


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> Hosts:
    return Hosts(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), architecture="qwen2"))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        *(({"zero_stage": stage, "packing": packed}, EXACT) for stage in range(4) for packed in (True, False)),
        *(({"zero_stage": stage, "offload_optimizer": "cpu"}, EXACT) for stage in (1, 2, 3)),
        ({"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}, EXACT),
        *(
            ({"zero_stage": stage, "gradient_checkpointing": True, "offload_activations": True}, EXACT)
            for stage in (0, 3)
        ),
        *(({"zero_stage": stage, "compute_dtype": "bfloat16"}, COARSE) for stage in (0, 3)),
        ({"zero_stage": 2, "compute_dtype": "bfloat16", "head_dtype": "float32"}, COARSE),
        *(({"zero_stage": stage, **BFLOAT16}, COARSEST) for stage in (1, 3)),
        ({"share_prefix": "on"}, EXACT),
        ({"share_prefix": "on", "zero_stage": 1, **BFLOAT16}, COARSEST),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_the_update_on_a_gpu_is_the_plain_one(
    hosts: Hosts, model: str, options: dict[str, Any], allowed: float
) -> None:
    groups, payloads = batch()
    config = replace(SGD, **options)
    algorithm = AlgorithmConfig(loss="dr_grpo")
    hosts.begin(config, algorithm, model)
    assert hosts.run(_device) == ["cuda:0"]
    before, *_ = hosts.pack()
    share_prompts = options.get("share_prefix", "off")
    assert share_prompts == "off" or hosts.run(_shares_prompts) == [True]
    hosts.step(plan(groups, algorithm, 1, packed=config.packing, share_prompts=share_prompts), payloads)
    after, *_ = hosts.pack()
    reference = load_plain(model, before)
    plain_policy.update(reference, groups, payloads, algorithm, max_completion_tokens=LIMIT, temperature=TEMPERATURE)
    expected = {name: p.detach() for name, p in reference.named_parameters()}
    assert distance(after, expected) / distance(before, expected) < allowed


def _shares_prompts(learner: Any) -> bool:
    return bool(learner._shares_prompts)


def _device(learner: Any) -> str:
    return str(next(learner._causal_lm.parameters()).device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fingerprints_of_weights_on_a_gpu_are_those_of_their_bytes(hosts: Hosts, model: str, dtype: str) -> None:
    hosts.begin(SGD, AlgorithmConfig(), model)
    tensors, manifest, _ = hosts.pack(dtype=dtype)
    for entry in manifest.tensors:
        assert fingerprint(tensors[entry.name]) == entry.fingerprint


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_snapshot_goes_on_bit_for_bit(hosts: Hosts, model: str, tmp_path: Path, zero_stage: int) -> None:
    groups, payloads = batch()
    config = LearnerConfig(learning_rate=1e-2, zero_stage=zero_stage, cpu_threads=1)
    algorithm = AlgorithmConfig()
    hosts.begin(config, algorithm, model)
    hosts.step(plan(groups, algorithm, 1), payloads)
    hosts.call("save", str(tmp_path))
    hosts.step(plan(groups, algorithm, 1), payloads)
    expected, *_ = hosts.pack()
    hosts.begin(config, algorithm, model)
    hosts.call("load", str(tmp_path))
    hosts.step(plan(groups, algorithm, 1), payloads)
    got, *_ = hosts.pack()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["again", "kept"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])
def test_the_heads_kernels_agree_with_float64(product_dtype: torch.dtype, has_bias: bool, kept_bytes: int) -> None:
    """The inputs are numbers of bfloat16, so that products are exact in both types, and sums are float32 in both."""
    torch.manual_seed(0)
    made = {"hidden": torch.randn(75, 64), "weight": torch.randn(5000, 64) / 8}
    if has_bias:
        made["bias"] = torch.randn(5000)
    labels = torch.randint(5000, (75,))
    ramp = torch.linspace(-1, 1, 75)

    def run(device: str, dtype: torch.dtype, **options: Any) -> list[torch.Tensor]:
        leaves = {name: x.bfloat16().to(device, dtype).requires_grad_() for name, x in made.items()}
        values = token_logprobs(**leaves, labels=labels.to(device), temperature=0.7, **options)
        (values[0] * ramp.to(values[0])).sum().add(0.3 * (values[1] * ramp.to(values[1]).square()).sum()).backward()
        grads = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        return [x.detach().cpu().double() for x in (*values, *grads)]

    tiling = Tiling(tokens=32, vocabulary=2300, kept_bytes=kept_bytes)
    got = run("cuda", torch.float32, product_dtype=product_dtype, tiling=tiling)
    expected = run("cpu", torch.float64)
    assert len(got) == 4 + has_bias
    for index, (x, y) in enumerate(zip(got, expected, strict=True)):
        rounds = product_dtype == torch.bfloat16 and index in (2, 3)  # the products of the backward pass
        assert float((x - y).norm() / y.norm()) < (5e-3 if rounds else 2e-6)
