"""Real DeepSpeed ranks on prompts with images of several sizes and none, against plain transformers. Two minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from tests import plain_policy
from tests.learner_batches import LIMIT, distance, plan
from tests.learner_host import TEMPERATURE, Hosts
from tests.tiny_vision import make_tiny_vision_model
from tests.vision_batches import PlainVision, vision_batch

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
TOKENS = 120
"""Of a pass: some passes have images, others text only, on each number of ranks."""


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_vision_model(tmp_path_factory.mktemp("vision")))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_vision_model(tmp_path_factory.mktemp("untied"), tied=False))


class Trained(PlainVision):
    """With the parameters that are trained."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in self._model.parameters() if parameter.requires_grad)


def load_plain(folder: str, weights: dict[str, torch.Tensor] | None = None) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected
    return model


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_the_update_is_that_of_plain_transformers(
    hosts: dict[int, Hosts], folder: str, untied: str, world: int, zero_stage: int
) -> None:
    """Frozen and trained towers, tied and untied heads, with and without checkpointing alternate."""
    frozen = zero_stage in (0, 3) if world == 2 else zero_stage == 2
    model = untied if zero_stage % 2 else folder
    groups, payloads = vision_batch(model)
    config = replace(
        SGD, ranks=world, zero_stage=zero_stage, freeze_vision=frozen, gradient_checkpointing=zero_stage > 1
    )
    hosts[world].begin(config, AlgorithmConfig(), model)
    before, *_ = hosts[world].pack()
    for algorithm, tokens in [
        (AlgorithmConfig(loss="grpo"), TOKENS),
        (AlgorithmConfig(loss="dr_grpo", optimizer_batches=2), 10_000),
    ]:
        hosts[world].step(plan(groups, algorithm, world, tokens, packed=False), payloads)
        after, *_ = hosts[world].pack()
        plain = load_plain(model, before)
        plain.model.visual.requires_grad_(not frozen)
        plain_policy.update(
            Trained(plain, payloads),
            groups,
            payloads,
            algorithm,
            max_completion_tokens=LIMIT,
            temperature=TEMPERATURE,
        )
        expected = parameters_of(plain)
        assert distance(after, expected) / distance(before, expected) < 1e-5, algorithm
        tower = {name for name in after if not torch.equal(after[name], before[name]) and ".visual." in name}
        assert bool(tower) is not frozen
        before = after


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_ranks_without_images_keep_step_with_those_that_have_some(
    hosts: dict[int, Hosts], folder: str, zero_stage: int
) -> None:
    """One rank has the group of text, the other one with images; the tower is trained."""
    groups, payloads = vision_batch(folder)
    groups, payloads = groups[:2], {name: payloads[name] for name in ("g0", "g1")}
    config = replace(SGD, ranks=2, zero_stage=zero_stage, freeze_vision=False)
    hosts[2].begin(config, AlgorithmConfig(), folder)
    before, *_ = hosts[2].pack()
    step = plan(groups, AlgorithmConfig(), 2, TOKENS, packed=False)
    assert [rank.group_ids for rank in step.ranks] in ([("g0",), ("g1",)], [("g1",), ("g0",)])
    hosts[2].step(step, payloads)
    after, *_ = hosts[2].pack()
    plain = load_plain(folder, before)
    plain_policy.update(
        PlainVision(plain, payloads),
        groups,
        payloads,
        AlgorithmConfig(),
        max_completion_tokens=LIMIT,
        temperature=TEMPERATURE,
    )
    expected = parameters_of(plain)
    assert distance(after, expected) / distance(before, expected) < 1e-5


@pytest.mark.parametrize(("zero_stage", "frozen"), [(0, True), (3, True), (2, False), (3, False)])
def test_adapters_learn_with_a_reference_policy_and_the_export_loads(
    hosts: dict[int, Hosts], folder: str, tmp_path: Path, zero_stage: int, frozen: bool
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    groups, payloads = vision_batch(folder)
    config = LearnerConfig(
        ranks=2,
        zero_stage=zero_stage,
        learning_rate=1e-2,
        lora_rank=4,
        freeze_vision=frozen,
        gradient_checkpointing=True,
        cpu_threads=1,
    )
    algorithm = AlgorithmConfig(beta=0.1)
    hosts[2].begin(config, algorithm, folder)
    before, *_ = hosts[2].pack()
    for _ in range(2):
        metrics = hosts[2].step(plan(groups, algorithm, 2, TOKENS, packed=False), payloads)
    assert metrics["policy/kl_ref"] > 0
    after, *_ = hosts[2].pack()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {".visual." in name for name in changed} == ({False} if frozen else {False, True})

    hosts[2].call("export", str(tmp_path / "export"))
    exported = parameters_of(load_plain(str(tmp_path / "export")))
    assert all(torch.equal(after[name], exported[name]) for name in after)
    AutoImageProcessor.from_pretrained(tmp_path / "export")
    assert "image" in AutoTokenizer.from_pretrained(tmp_path / "export").chat_template
    written = json.loads((tmp_path / "export" / "config.json").read_text())
    assert written["text_config"]["use_cache"] is True
    assert (tmp_path / "export" / "adapter" / "adapter_model.safetensors").is_file()
