"""Learning rates: pure functions of the optimizer step."""

from __future__ import annotations

import math

import pytest
import torch

from funicular.actors.config import LearnerConfig
from funicular.actors.schedules import learning_rate_factor, make_schedule


def factors(total: int | None, steps: int, **options: object) -> list[float]:
    config = LearnerConfig(**options)  # type: ignore[arg-type]
    return [learning_rate_factor(config, step, total) for step in range(steps)]


def test_warm_up_reaches_the_learning_rate_and_no_step_has_none() -> None:
    assert factors(None, 6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(None, 2) == [1.0, 1.0]
    assert min(factors(10, 10, warmup_steps=3, schedule="linear")) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_follows_its_formula_and_stays_at_its_end(schedule: str) -> None:
    got = factors(12, 15, warmup_steps=2, schedule=schedule, min_lr_ratio=0.2)
    assert got[:2] == [0.5, 1.0]
    for step in range(2, 12):
        x = (step - 2) / 10
        shape = 1 - x if schedule == "linear" else (1 + math.cos(math.pi * x)) / 2
        assert got[step] == pytest.approx(0.2 + 0.8 * shape)
    assert got[12:] == pytest.approx([0.2] * 3)


def test_decay_over_the_last_steps_leaves_a_plateau() -> None:
    got = factors(10, 10, warmup_steps=2, schedule="linear", decay_steps=4)
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert factors(10, 10, warmup_steps=8, schedule="linear", decay_steps=99)[8:] == pytest.approx([1, 0.5])


def test_warm_up_longer_than_the_run_never_decays() -> None:
    assert factors(3, 4, warmup_steps=5, schedule="cosine") == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_a_schedule_that_ends_with_the_run_needs_its_length() -> None:
    with pytest.raises(ValueError, match=r"learner\.schedule: cosine"):
        factors(None, 1, schedule="cosine")


def test_a_saved_schedule_goes_on_where_it_was() -> None:
    config = LearnerConfig(learning_rate=0.5, schedule="cosine", warmup_steps=2)

    def fresh() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        return optimizer, make_schedule(optimizer, config, 9)

    def rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
        out = []
        for _ in range(steps):
            out.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return out

    optimizer, schedule = fresh()
    expected = rates(optimizer, schedule, 9)
    optimizer, schedule = fresh()
    assert rates(optimizer, schedule, 4) == expected[:4]
    saved = schedule.state_dict()
    optimizer, schedule = fresh()
    schedule.load_state_dict(saved)
    assert rates(optimizer, schedule, 5) == expected[4:]
    assert expected == [0.5 * learning_rate_factor(config, step, 9) for step in range(9)]
