"""A learner whose tensors leave the device between all that it is asked for learns what it learns without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from tests.learner_batches import batch, plan
from tests.learner_host import Hosts
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

ON_GPU = torch.cuda.is_available()
WORLDS = [1] if ON_GPU else [1, 2]
SEEDS = (0, 1)
_WORKSPACES = 64 << 20
"""Of CUDA's libraries, which torch keeps."""


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {world: Hosts(world) for world in WORLDS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), architecture="qwen2"))


def _leave(learner: Any) -> tuple[int, int]:
    """Bytes that left, and bytes that parameters, reference and optimizer still have on the device."""
    left = learner._absence.leave(learner._device)
    engine = learner._engine
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kept = [*engine.module.parameters(), *engine.module.buffers(), *states]
    kept += [p for group in optimizer.param_groups for p in group["params"]]
    if ON_GPU:
        assert torch.cuda.memory_allocated() < _WORKSPACES
    storages = [t.untyped_storage() for t in kept if t.device == learner._device]
    return left, sum(s.nbytes() for s in storages if s.resizable())  # on a CPU, not the model's file in memory


def _return(learner: Any) -> None:
    learner.return_to_gpu()


def learned(hosts: Hosts, config: LearnerConfig, beta: float, model: str, folder: Path, *, leaves: bool) -> Any:
    """Two steps, a snapshot after the first, what is published last, and the snapshot's first parameter."""

    def turn() -> None:
        if leaves:
            for left, kept in hosts.run(_leave):
                assert left > 0
                assert kept == 0
            if ON_GPU:  # else what was kept would leave, too
                assert [left for left, _ in hosts.run(_leave)] == [0]
            hosts.run(_return)

    algorithm = AlgorithmConfig(beta=beta)
    hosts.begin(config, algorithm, model, optimizer_steps=4)
    metrics = []
    for seed in SEEDS:
        groups, payloads = batch(seed)
        turn()
        metrics.append(hosts.step(plan(groups, algorithm, config.ranks), payloads))
        turn()
        hosts.call("save", str(folder / str(seed)))
    turn()
    hosts.call("load", str(folder / "0"))
    turn()
    groups, payloads = batch(SEEDS[-1])
    metrics.append(hosts.step(plan(groups, algorithm, config.ranks), payloads))
    turn()
    tensors, *_ = hosts.pack()
    return metrics, tensors


CONFIGS: list[dict[str, Any]] = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 1, "dtype": "bfloat16", "compute_dtype": "bfloat16"},
    {"zero_stage": 3, "dtype": "bfloat16", "compute_dtype": "bfloat16"},
    {"zero_stage": 2, "offload_optimizer": "cpu"},
    {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    {"zero_stage": 0, "optimizer": "muon"},
    {"zero_stage": 0, "lora_rank": 4, "lora_alpha": 8},
    {"zero_stage": 3, "lora_rank": 4, "lora_alpha": 8},
]


@pytest.mark.parametrize("options", CONFIGS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("world", WORLDS)
def test_turns_change_nothing(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, world: int, options: dict[str, Any]
) -> None:
    config = LearnerConfig(ranks=world, cpu_threads=1, learning_rate=1e-3, gradient_checkpointing=True, **options)
    beta = 0.1 if world == 1 else 0.0
    stayed, their = learned(hosts[world], config, beta, model, tmp_path / "stayed", leaves=False)
    left, mine = learned(hosts[world], config, beta, model, tmp_path / "left", leaves=True)
    for before, after in zip(stayed, left, strict=True):
        of = "policy/grad_norm"
        assert after[of] == (pytest.approx(before[of], rel=1e-4) if ON_GPU else before[of])
    for name, tensor in their.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-5 if ON_GPU else 0, msg=name)
