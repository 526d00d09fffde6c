"""Runners over the reward functions of `tests/user_rewards.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import FunctionRunner
from tests import user_rewards
from tests.reward_runs import Make


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes runners whose recipe lies in tmp_path, beside `user.py`; closes them."""
    shutil.copy(user_rewards.__file__, tmp_path / "user.py")
    runners: list[FunctionRunner] = []

    def build(functions: dict[str, float], limit: float = 20.0, judge: Any = None, **keys: Any) -> FunctionRunner:
        config = RewardConfig(functions=functions, time_limit_s=limit, **keys)
        runners.append(FunctionRunner(config, tmp_path, judge))
        return runners[-1]

    yield build
    for runner in runners:
        runner.close()
