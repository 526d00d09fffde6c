"""The simulation that measures the controller runs, keeps the bound on staleness, and trains what is sampled."""

from __future__ import annotations

from tests.bench.simulated_parts import GroupTimes, Times
from tests.bench.simulation import GROUPS_PER_GENERATOR, run_once

TIMES = Times(
    source="invented",
    groups=[GroupTimes(generate_s=s, score_s=0.0, lengths_G=(10, int(10 * s))) for s in (1.0, 2.0, 20.0)],
    learn_s=[1.0],
    pack_s=[0.1],
    install_s=[0.1, 0.2],
)


def test_a_simulated_run_does_all_its_steps_within_the_bound() -> None:
    outcome = run_once(TIMES, generators=2, speed=500, steps=4)
    assert outcome.generators == 2
    assert outcome.staleness_max == 1
    assert outcome.groups_per_s > 0
    assert outcome.events_per_fsync >= 1


def test_long_completions_are_trained_as_often_as_they_are_sampled() -> None:
    outcome = run_once(TIMES, generators=2, speed=2000, steps=40)
    groups = 40 * 2 * GROUPS_PER_GENERATOR
    assert abs(outcome.trained_length - (10 + 230 / 3) / 2) < 4 * (87 / 2) / groups**0.5
