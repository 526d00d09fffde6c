from __future__ import annotations

import pytest

from funicular.actors.entropy_bonus import EntropyBonus


def test_without_a_target_the_coefficient_is_constant() -> None:
    bonus = EntropyBonus(0.01, None)
    bonus.end_step(0.0)
    assert bonus.applied == 0.01


def test_it_rises_below_the_target_falls_above_and_acts_only_below() -> None:
    bonus = EntropyBonus(0.0, 0.2)
    applied = []
    for entropy in (0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.3):
        applied.append(bonus.applied)
        bonus.end_step(entropy)
    assert applied == pytest.approx([0.0, 0.005, 0.010, 0.0, 0.010, 0.0, 0.0])
    assert dict(bonus.state())["coef"] == pytest.approx(0.0)


def test_it_stays_within_0_and_1() -> None:
    high, low = EntropyBonus(1.0, 0.2), EntropyBonus(0.0, 0.2)
    high.end_step(0.1)
    low.end_step(0.9)
    assert (float(dict(high.state())["coef"]), float(dict(low.state())["coef"])) == (1.0, 0.0)


def test_a_step_that_trained_nothing_steers_nothing() -> None:
    bonus = EntropyBonus(0.5, 0.2)
    bonus.end_step(None)
    assert float(dict(bonus.state())["coef"]) == 0.5
    assert bonus.applied == 0.0


@pytest.mark.parametrize("steps", [[], [0.1, 0.3], [0.1]])
def test_a_loaded_state_goes_on_as_the_saved_one(steps: list[float]) -> None:
    saved, loaded = EntropyBonus(0.1, 0.2), EntropyBonus(0.1, 0.2)
    for entropy in steps:
        saved.end_step(entropy)
    loaded.load_state(dict(saved.state()))
    for bonus in (saved, loaded):
        bonus.end_step(0.15)
    assert loaded.applied == saved.applied > 0
