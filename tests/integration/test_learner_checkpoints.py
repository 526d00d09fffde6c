"""Checkpoints of real DeepSpeed ranks: continued to the bit, and moved between ranks and ZeRO stages. Two minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.step_plan import plan_step
from funicular.actors.types import GroupPayload, ScoredGroup
from tests.builders import make_group, make_payload
from tests.learner_host import Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

ALGORITHM = AlgorithmConfig()
ADAMW = LearnerConfig(learning_rate=1e-2, warmup_steps=3, weight_decay=0.01, cpu_threads=1)
LORA = replace(ADAMW, lora_rank=4)
MOMENTUM = replace(ADAMW, optimizer="sgd", momentum=0.9)
BFLOAT16 = replace(ADAMW, dtype="bfloat16", compute_dtype="bfloat16")
Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), architecture="qwen2"))


def batch(seed: int) -> tuple[list[ScoredGroup], dict[str, GroupPayload]]:
    lengths = [[3, 9, 16, 7], [12, 2, 4, 5], [6, 8, 6, 1]]
    groups = [make_group(f"g{i}", rewards_G=[1.0, 0.0, 0.5, 0.0], lengths_G=n) for i, n in enumerate(lengths)]
    payloads = {
        group.group_id: make_payload(
            group.group_id,
            lengths_G=group.generation.lengths_G,
            prompt_tokens=group.generation.prompt_tokens,
            seed=seed,
        )
        for group in groups
    }
    return groups, payloads


class Learner:
    """A learner of a number of ranks, on hosts that outlive it."""

    def __init__(self, hosts: dict[int, Hosts], model: str, config: LearnerConfig) -> None:
        self._hosts = hosts[config.ranks]
        self._ranks = config.ranks
        self._hosts.begin(config, ALGORITHM, model)

    def train(self, *seeds: int) -> list[dict[str, float]]:
        """One step on each batch; the metrics that do not depend on the machine."""
        found = []
        for seed in seeds:
            groups, payloads = batch(seed)
            plan = plan_step(groups, ALGORITHM, self._ranks, 60, 16)
            metrics = self._hosts.step(plan, payloads)
            found.append({name: value for name, value in metrics.items() if "memory" not in name})
        return found

    def weights(self) -> Weights:
        return self._hosts.pack()[0]

    def save(self, folder: Path) -> Path:
        self._hosts.call("save", str(folder))
        return folder

    def load(self, folder: Path) -> None:
        self._hosts.call("load", str(folder))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "parameters").iterdir()}


def distance(got: Weights, expected: Weights) -> float:
    difference = sum((got[name].double() - tensor.double()).square().sum() for name, tensor in expected.items())
    return float((difference / sum(tensor.double().square().sum() for tensor in expected.values())) ** 0.5)


@pytest.mark.parametrize(
    "config",
    [replace(kind, zero_stage=stage) for kind in (ADAMW, LORA, MOMENTUM) for stage in range(4)]
    + [replace(BFLOAT16, zero_stage=stage) for stage in (1, 2, 3)]
    + [replace(ADAMW, offload_optimizer="cpu", zero_stage=stage) for stage in (1, 3)]
    + [replace(ADAMW, offload_optimizer="cpu", offload_parameters="cpu", zero_stage=3)]
    + [replace(ADAMW, optimizer=optimizer) for optimizer in ("adafactor", "muon")]
    + [replace(LORA, adapter="dora", zero_stage=3)],
    ids=lambda c: f"{c.optimizer}-{c.dtype}-{c.adapter}{c.lora_rank}-offload-{c.offload_optimizer}-zero{c.zero_stage}",
)
def test_a_loaded_checkpoint_continues_to_the_bit(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, config: LearnerConfig
) -> None:
    config = replace(config, ranks=2)
    learner = Learner(hosts, model, config)
    learner.train(0, 1)
    folder = learner.save(tmp_path / "saved")
    expected = learner.train(2, 3)
    expected_weights = learner.weights()

    learner = Learner(hosts, model, config)
    learner.load(folder)
    assert files_of(learner.save(tmp_path / "again")) == files_of(folder)
    assert learner.train(2, 3) == expected
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in learner.weights().items())


def place(stage: int, ranks: int) -> dict[str, int]:
    return {"zero_stage": stage, "ranks": ranks}


PLACES = [place(stage, ranks) for stage in range(4) for ranks in (1, 2)]


@pytest.fixture(scope="module")
def calm(hosts: dict[int, Hosts], model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, Weights]:
    """A run that nobody stopped, without ZeRO: its checkpoint after two steps, and what three more made of it."""
    learner = Learner(hosts, model, ADAMW)
    learner.train(0, 1)
    folder = learner.save(tmp_path_factory.mktemp("calm") / "saved")
    return folder, learner.train(2, 3, 4), learner.weights()


@pytest.mark.parametrize("there", PLACES, ids=lambda there: "zero{zero_stage}-ranks{ranks}".format(**there))
def test_any_ranks_and_stage_continue_a_checkpoint_of_one_rank_without_zero(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, calm: tuple[Path, list, Weights], there: dict[str, int]
) -> None:
    folder, expected, weights = calm
    learner = Learner(hosts, model, replace(ADAMW, **there))
    learner.load(folder)
    # The same files from everywhere: whatever loads one of them loads them all.
    assert files_of(learner.save(tmp_path)) == files_of(folder)
    found = learner.train(2, 3, 4)
    assert [line["policy/loss"] for line in found] == pytest.approx(
        [line["policy/loss"] for line in expected], abs=1e-6
    )
    assert [line["policy/learning_rate"] for line in found] == [line["policy/learning_rate"] for line in expected]
    assert distance(learner.weights(), weights) <= 1e-6


def test_a_run_that_moves_at_every_step_goes_where_one_that_stays_does(
    hosts: dict[int, Hosts], model: str, tmp_path: Path
) -> None:
    slow = replace(ADAMW, learning_rate=1e-3)  # AdamW divides by small numbers: ranks and stages add in another order
    stays = Learner(hosts, model, slow)
    stays.train(*range(9))
    expected = stays.weights()
    way = [(0, 1), (1, 2), (2, 1), (3, 2), (0, 2), (3, 1), (2, 2), (1, 1), (0, 1)]
    for step, (stage, ranks) in enumerate(way):
        learner = Learner(hosts, model, replace(slow, **place(stage, ranks)))
        if step:
            learner.load(tmp_path / str(step - 1))
        learner.train(step)
        learner.save(tmp_path / str(step))
    assert distance(learner.weights(), expected) <= 1e-6


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (replace(LORA, **place(0, 1)), replace(LORA, **place(3, 2))),
        (replace(LORA, **place(2, 2)), replace(LORA, **place(1, 1))),
        (replace(MOMENTUM, **place(3, 2)), replace(MOMENTUM, **place(0, 1))),
        (replace(ADAMW, **place(0, 1)), replace(ADAMW, offload_optimizer="cpu", **place(3, 2))),
        (replace(BFLOAT16, **place(1, 2)), replace(BFLOAT16, **place(3, 1))),
        (replace(BFLOAT16, **place(3, 2)), replace(BFLOAT16, **place(1, 1))),
        (replace(BFLOAT16, **place(2, 1)), replace(ADAMW, **place(0, 2))),
        (replace(ADAMW, **place(0, 2)), replace(BFLOAT16, **place(2, 1))),
    ],
    ids=["lora-up", "lora-down", "momentum", "offload", "bfloat16-up", "bfloat16-down", "to-float32", "to-bfloat16"],
)
def test_adapters_and_master_weights_move_too(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, here: LearnerConfig, there: LearnerConfig
) -> None:
    learner = Learner(hosts, model, here)
    learner.train(0, 1)
    folder = learner.save(tmp_path / "here")
    expected = learner.weights()
    learner = Learner(hosts, model, there)
    learner.load(folder)
    found = learner.weights()
    if here.dtype == there.dtype:
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    else:
        assert all(torch.equal(tensor.bfloat16(), expected[name].bfloat16()) for name, tensor in found.items())
    assert files_of(learner.save(tmp_path / "there")) == files_of(folder)


def test_a_checkpoint_from_before_the_first_step_has_no_optimizer_state_and_loads_anywhere(
    hosts: dict[int, Hosts], model: str, tmp_path: Path
) -> None:
    folder = Learner(hosts, model, replace(ADAMW, **place(2, 2))).save(tmp_path)
    fresh = Learner(hosts, model, replace(ADAMW, **place(3, 1)))
    expected = fresh.train(0)
    weights = fresh.weights()
    learner = Learner(hosts, model, replace(ADAMW, **place(3, 1)))
    learner.train(5)  # what it leaves in the optimizer must go
    learner.load(folder)
    assert learner.train(0) == expected
    assert all(torch.equal(tensor, weights[name]) for name, tensor in learner.weights().items())


def test_its_files_are_read_without_deepspeed(hosts: dict[int, Hosts], model: str, tmp_path: Path) -> None:
    learner = Learner(hosts, model, replace(ADAMW, **place(3, 2)))
    learner.train(0)
    learner.save(tmp_path)
    for name, tensor in learner.weights().items():
        saved = load_file(tmp_path / "parameters" / f"{name}.safetensors")
        assert torch.equal(saved["parameter"], tensor)
        assert {key: state.shape for key, state in saved.items()} == dict.fromkeys(
            ("parameter", "exp_avg", "exp_avg_sq"), tensor.shape
        )
        assert saved["exp_avg"].abs().sum() > 0


def test_what_the_recipe_says_of_the_learning_rate_holds_after_a_resume(
    hosts: dict[int, Hosts], model: str, calm: tuple[Path, list, Weights]
) -> None:
    learner = Learner(hosts, model, replace(ADAMW, learning_rate=1e-3, warmup_steps=5, zero_stage=1))
    learner.load(calm[0])
    (line,) = learner.train(2)
    assert line["policy/learning_rate"] == pytest.approx(1e-3 * 3 / 5), "the third step of the new warm-up"


def test_what_cannot_change_is_refused_with_both_values_and_the_fix(
    hosts: dict[int, Hosts], model: str, tmp_path: Path
) -> None:
    folder = Learner(hosts, model, LORA).save(tmp_path / "saved")
    other_model = str(make_tiny_model(tmp_path / "other", architecture="qwen2", seed=1))
    cases = [
        (model, {"optimizer": "sgd"}, r"learner.optimizer: .* saved with 'adamw', this run has 'sgd'; set learner.opt"),
        (model, {"lora_rank": 0}, r"learner.lora_rank: .* saved with 4, this run has 0; set learner.lora_rank=4"),
        (model, {"lora_alpha": 8.0}, r"learner.lora_alpha: .* saved with 32.0, this run has 8.0"),
        (model, {"lora_targets": "q_proj"}, r"learner.lora_targets: .*'all-linear'.*'q_proj'"),
        (other_model, {}, r"model.path: .*/tiny.*digest.*/other is another"),
    ]
    for folder_of_model, change, message in cases:
        learner = Learner(hosts, folder_of_model, replace(LORA, **change))
        with pytest.raises(ValueError, match=message):
            learner.load(folder)
