"""`cluster.colocate` before anything starts: what it needs, what it asks of the cluster, what plans and pods show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from funicular.actors.config import GeneratorConfig, LearnerConfig
from funicular.cluster.config import ClusterConfig
from funicular.launch.build import demand
from funicular.launch.checks import check
from funicular.launch.config import Config
from funicular.launch.engine_options import refusal
from funicular.launch.k8s_groups import groups
from funicular.launch.k8s_options import RenderOptions
from funicular.launch.plan import make_plan
from funicular.launch.plan_nodes import node_map, too_wide
from funicular.launch.plan_options import PlanOptions
from tests.unit.launch.test_plan import QWEN, shape

GIB = 1 << 30


def shared(*, engines: int = 1, workers: int = 1, ranks: int = 1, **of_run: Any) -> Config:
    config = Config(
        cluster=ClusterConfig(colocate=True),
        generator=GeneratorConfig(count=engines, tensor_parallel_size=workers, dtype="bfloat16"),
        learner=LearnerConfig(ranks=ranks, zero_stage=3, dtype="bfloat16", compute_dtype="bfloat16"),
        max_staleness=0,
    )
    return replace(config, **of_run)


def problems(config: Config, folder: Path) -> dict[str, str]:
    return {problem.key: str(problem) for problem in check(config, folder)}


def test_what_it_needs(tmp_path: Path) -> None:
    assert problems(shared(), tmp_path) == {}
    assert problems(shared(engines=2, workers=2, ranks=4), tmp_path) == {}
    ahead = problems(shared(max_staleness=1), tmp_path)
    assert "nothing is generated while the learner trains" in ahead["max_staleness"]
    unequal = problems(shared(engines=2, workers=2, ranks=2), tmp_path)
    assert "Set learner.ranks=4" in unequal["learner.ranks"]
    base = shared()
    adapter = replace(
        base,
        learner=replace(base.learner, lora_rank=8),
        weight_sync=replace(base.weight_sync, lora="adapter"),
    )
    assert "loses the place of its adapter" in problems(adapter, tmp_path)["weight_sync.lora"]
    broadcast = replace(base, weight_sync=replace(base.weight_sync, transport="broadcast"))
    assert "have left the GPU" in problems(broadcast, tmp_path)["weight_sync.transport"]
    given = replace(
        base,
        data=replace(base.data, completion_column="text"),
        algorithm=replace(base.algorithm, group_size=1),
        distillation=replace(base.distillation, loss="hard"),
        evaluation=replace(base.evaluation, tasks=0),
    )
    assert "no generator is started" in problems(given, tmp_path)["cluster.colocate"]


@pytest.mark.parametrize(("method", "fine"), [("ngram", True), ("eagle", False)])
def test_a_draft_model_would_be_lost(tmp_path: Path, method: str, fine: bool) -> None:
    base = shared()
    options = {"speculative_config": {"method": method, "num_speculative_tokens": 2}}
    found = problems(replace(base, generator=replace(base.generator, engine_options=options)), tmp_path)
    assert ("generator.engine_options" in found) != fine


def test_sleep_is_no_option_of_the_recipes() -> None:
    assert refusal("enable_sleep_mode") is not None


def test_it_asks_for_the_ranks_gpus_alone_and_for_everybodys_cpus() -> None:
    config = shared(engines=2, workers=2, ranks=4)
    asked = demand(config)
    assert asked.gpus == 4
    assert asked.cpus == 8 + config.reward.scorers
    assert dict(asked.roles) == {"learner": 4}
    assert [(kind.role, kind.count, kind.workers) for kind in asked.engines] == [("learner", 2, 2)]
    alone = demand(replace(config, cluster=ClusterConfig()))
    assert alone.gpus == 8


def test_the_plan_shows_both_turns_of_one_gpu() -> None:
    made = make_plan(shared(), PlanOptions(device="h200", gpus=1), shape("qwen2", QWEN))
    text = made.text()
    assert "parts     1 GPUs: 1 generators x 1, on the GPUs of 1 learner ranks" in text
    assert "node 0    generator 0, on the GPUs of as many learner ranks; 7 free" in text
    assert "learner or engine, the larger" in text
    kept = made.shape.parameters * (2 + 4 + 12)
    assert f"host's memory: {kept / GIB:,.2f} GiB of each rank" in text
    assert made.bounds.turns_s == pytest.approx(2 * kept / made.hardware.host_link)
    assert made.bounds.step_s(0) > made.bounds.generate_s + made.bounds.learn_s + made.bounds.turns_s
    assert not [problem for problem in made.problems if problem.startswith("the parts take")]


def test_nothing_moves_on_a_cpu() -> None:
    assert make_plan(shared(), PlanOptions(), shape("qwen2", QWEN)).bounds.turns_s == 0


def test_fixes_keep_engines_and_ranks_as_many() -> None:
    made = make_plan(shared(), PlanOptions(device="h100"), shape("qwen2", QWEN))
    (learner,) = made.problems
    assert "learner.ranks=4 generator.count=4" in learner


def test_an_engine_stands_on_one_node_beside_its_ranks() -> None:
    config = shared(engines=3, workers=2, ranks=6)
    assert node_map(config, 4) == [
        "node 0    generator 0-1 x 2, on the GPUs of as many learner ranks",
        "node 1    generator 2 x 2, on the GPUs of as many learner ranks; 2 free",
    ]
    assert str(too_wide(config, 1)).startswith("generator.tensor_parallel_size=2: an engine stands on one node")


def test_pods_are_the_learners_and_engines_fit_into_them() -> None:
    config = shared(engines=3, workers=4, ranks=12)
    (group,) = groups(config, RenderOptions(gpus_per_pod=8))
    assert (group.role, group.pods, group.gpus) == ("learner", 3, 4)
    with pytest.raises(ValueError, match=r"generator\.tensor_parallel_size=4: an engine stands on one pod"):
        groups(config, RenderOptions(gpus_per_pod=2))
    with pytest.raises(ValueError, match="engines, ranks and scorers take"):
        groups(config, RenderOptions(cpus_per_gpu=1))
