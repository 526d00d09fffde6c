from __future__ import annotations

from funicular.actors.config import GeneratorConfig, LearnerConfig
from funicular.launch.config import Config
from funicular.launch.plan_nodes import node_map, too_wide


def config(*, engines: int, workers: int, ranks: int) -> Config:
    return Config(
        generator=GeneratorConfig(count=engines, tensor_parallel_size=workers), learner=LearnerConfig(ranks=ranks)
    )


def test_engines_stand_on_one_node_each_and_ranks_where_there_is_room() -> None:
    assert node_map(config(engines=3, workers=3, ranks=6), 8) == [
        "node 0    generator 0-1 x 3, learner 0-1",
        "node 1    generator 2 x 3, learner 2-5; 1 free",
    ]


def test_an_engine_that_is_larger_than_a_node_does_not_fit() -> None:
    wide = config(engines=1, workers=16, ranks=1)
    assert node_map(wide, 8) == []
    assert too_wide(wide, 16) is None
    assert str(too_wide(wide, 8)).startswith("generator.tensor_parallel_size=16: an engine stands on one node")
