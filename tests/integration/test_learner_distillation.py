"""The learner's distillation terms against plain PyTorch with all logits, on every ZeRO stage and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from funicular.actors.aggregation import Normaliser
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.losses.presets import preset_of
from funicular.actors.step_plan import plan_step
from funicular.actors.types import GroupPayload, ScoredGroup, TeacherPayload, TeacherRecord
from tests.learner_batches import LIMIT, batch, distance, load_plain
from tests.learner_host import TEMPERATURE, Hosts
from tests.plain_policy import Row, valid_rows
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
SOFT = 1.7
"""distillation.temperature."""


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A student, and a teacher of another architecture with the same tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    student = make_tiny_model(folder / "student", architecture="qwen2")
    teacher = make_tiny_model(folder / "teacher", architecture="llama", tied=False, seed=1)
    return str(student), str(teacher)


def row_logits(model: Any, row: Row) -> torch.Tensor:
    ids = torch.cat([row["prompt"], row["completion"]])
    return model(input_ids=ids[None]).logits[0, len(row["prompt"]) - 1 : -1]


def chosen(logits: torch.Tensor, row: Row, temperature: float) -> torch.Tensor:
    return (logits / temperature).log_softmax(-1).gather(-1, row["completion"][:, None])[:, 0]


def divergence(student: torch.Tensor, teacher: torch.Tensor, config: DistillationConfig) -> torch.Tensor:
    """Of each position, from the definition, with probabilities."""
    assert config.temperature is not None
    q, p = ((logits / config.temperature).softmax(-1) for logits in (student, teacher))

    def kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left * (left / right).log()).sum(-1)

    if config.loss == "forward_kl":
        return kl(p, q)
    mixture = config.jsd_beta * p + (1 - config.jsd_beta) * q
    return config.jsd_beta * kl(p, mixture) + (1 - config.jsd_beta) * kl(q, mixture)


def plain_update(
    student: Any,
    teacher: Any,
    groups: list[ScoredGroup],
    payloads: Mapping[str, GroupPayload],
    algorithm: AlgorithmConfig,
    config: DistillationConfig,
) -> tuple[float, float | None]:
    """One gradient step of rate 1 on the whole batch, row by row, on policy.

    Returns:
        The distillation term, and the mean of KL(student || teacher), or of its samples, over tokens; None: there is no
        teacher.
    """
    rows_PG = valid_rows(groups, payloads, algorithm)
    normaliser = Normaliser(
        aggregation=preset_of(algorithm).aggregation,
        rows=sum(map(len, rows_PG)),
        tokens=sum(len(row["completion"]) for rows in rows_PG for row in rows),
        groups=len(rows_PG),
        max_completion_tokens=LIMIT,
    )
    total: Any = torch.zeros(())
    term, kl = 0.0, []
    for rows in rows_PG:
        of_group = sum(len(row["completion"]) for row in rows)
        for row in rows:
            logits = row_logits(student, row)
            with torch.no_grad():
                said = row_logits(teacher, row)
            weight = normaliser.token_weight(len(row["completion"]), of_group)
            logprobs = chosen(logits, row, TEMPERATURE)
            advantages = torch.full_like(logprobs, config.reward_coef * row["advantage"]).detach()
            if config.loss == "hard":
                compared = -weight * config.coef * logprobs.sum()
                total = total + compared
                term += compared.item()
            elif config.loss == "reverse_kl":
                difference = (logprobs - chosen(said, row, TEMPERATURE)).detach()
                advantages = advantages - config.coef * difference
                term += float(weight * config.coef * difference.sum())
                kl.extend(difference.tolist())
            else:
                compared = weight * config.coef * divergence(logits, said, config).sum()
                total = total + compared
                term += compared.item()
                kl.extend(divergence(said, logits, replace(config, loss="forward_kl")).tolist())  # of the two swapped
            if config.reward_coef or config.loss == "reverse_kl":
                capped = (logprobs.detach() - row["generator"]).exp().clamp(max=2.0)
                total = total - weight * (capped * advantages * logprobs).sum()
    student.zero_grad()
    total.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= parameter.grad
    return term, float(np.mean(kl)) if kl else None


def with_scores(
    groups: list[ScoredGroup], payloads: Mapping[str, GroupPayload], teacher: Any
) -> tuple[list[ScoredGroup], dict[str, TeacherPayload]]:
    """What a teacher's actor gives, from transformers."""
    taught, said = [], {}
    for group in groups:
        payload = payloads[group.group_id]
        logprobs = []
        for index in range(len(group.verdicts_G)):
            ids = torch.from_numpy(payload.token_ids[payload.completion(index)].astype(np.int64))
            row = {"prompt": torch.from_numpy(payload.prompt_ids.astype(np.int64)), "completion": ids}
            with torch.no_grad():
                logprobs.append(chosen(row_logits(teacher, row), row, TEMPERATURE).numpy())
        record = TeacherRecord(group_id=group.group_id, teacher="t", finite_G=(True,) * len(logprobs), seconds=0.0)
        taught.append(replace(group, teaching=record))
        said[group.group_id] = TeacherPayload(group_id=group.group_id, logprobs=np.concatenate(logprobs))
    return taught, said


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss": "reverse_kl", "coef": 0.7}, {"ranks": 1}),
    ({"loss": "reverse_kl", "coef": 0.7, "reward_coef": 0.5}, {"ranks": 2, "zero_stage": 3}),
    ({"loss": "jsd", "jsd_beta": 0.3, "temperature": SOFT}, {"ranks": 1}),
    ({"loss": "jsd", "jsd_beta": 0.3, "temperature": SOFT, "coef": 2.0}, {"ranks": 1, "packing": False}),
    ({"loss": "jsd", "jsd_beta": 0.3, "temperature": SOFT, "reward_coef": 0.5}, {"ranks": 2, "zero_stage": 1}),
    ({"loss": "jsd", "jsd_beta": 0.3, "temperature": SOFT, "reward_coef": 0.5}, {"ranks": 2, "zero_stage": 3}),
    ({"loss": "forward_kl", "temperature": SOFT}, {"ranks": 2, "zero_stage": 3}),
    ({"loss": "hard", "coef": 0.7}, {"ranks": 2, "zero_stage": 2}),
    ({"loss": "forward_kl", "temperature": SOFT}, {"ranks": 1, "gradient_checkpointing": True}),
]


@pytest.mark.parametrize(("options", "learner"), CASES, ids=lambda value: "-".join(map(str, value.values())))
@pytest.mark.parametrize("loss", ["grpo", "bnpo"])
def test_an_update_is_that_of_the_definition_however_the_batch_is_cut(
    hosts: dict[int, Hosts], folders: tuple[str, str], loss: str, options: dict[str, Any], learner: dict[str, Any]
) -> None:
    student, teacher = map(load_plain, folders)
    config = DistillationConfig(teacher=None if options["loss"] == "hard" else "t", **options)
    algorithm = AlgorithmConfig(loss=loss)  # type: ignore[arg-type]
    groups, payloads = batch()
    groups, said = with_scores(groups, payloads, teacher)
    if config.loss == "hard":  # as they come from an encoder
        algorithm = replace(algorithm, importance_correction="none")
        payloads = {name: replace(p, generator_logprobs=None, token_versions=None) for name, p in payloads.items()}
    world = learner["ranks"]
    hosts[world].begin(replace(SGD, **learner), algorithm, folders[0], distillation=config, teacher_folder=folders[1])
    packed = learner.get("packing", True)
    cut = plan_step(groups, algorithm, world, 60, LIMIT, packed=packed, distillation=config)
    scores = said if config.loss == "reverse_kl" else None
    metrics = hosts[world].step(cut, payloads, scores)
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    term, kl = plain_update(student, teacher, groups, payloads, algorithm, config)
    expected = {name: parameter.detach() for name, parameter in student.named_parameters()}
    after, *_ = hosts[world].pack()
    assert distance(after, expected) < 2e-5 * distance(before, expected)
    assert metrics["distillation/loss"] == pytest.approx(term, rel=1e-4)
    assert metrics.get("distillation/kl") == (None if kl is None else pytest.approx(kl, rel=1e-4))
    assert ("mismatch/kl_k1" in metrics) == (config.loss != "hard")


@pytest.mark.parametrize("loss", ["jsd", "forward_kl"])
def test_a_few_steps_bring_the_student_much_closer(
    hosts: dict[int, Hosts], folders: tuple[str, str], loss: str
) -> None:
    config = DistillationConfig(teacher="t", loss=loss)  # type: ignore[arg-type]
    learner = LearnerConfig(learning_rate=2e-3, adam_beta2=0.95, cpu_threads=1)
    algorithm = AlgorithmConfig(optimizer_batches=2)
    hosts[1].begin(learner, algorithm, folders[0], distillation=config, teacher_folder=folders[1])
    groups, payloads = batch()
    cut = plan_step(groups, algorithm, 1, 400, LIMIT, packed=True, distillation=config)
    kl = [hosts[1].step(cut, payloads)["distillation/kl"] for _ in range(10)]
    assert kl[-1] < 0.5 * kl[0]
