"""The scorer: turns the completions of a group into verdicts, in a process that can be killed.

A plain class; `scorer_actor` makes it a Ray actor. Loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.actors.doing import Doing, told
from funicular.actors.errors import RunStopped
from funicular.actors.kept_gauges import KeptGauges
from funicular.actors.pool_judge import PoolJudge
from funicular.actors.types import GroupPayload
from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import FunctionRunner
from funicular.rewards.types import Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """What scoring a group gave."""

    verdicts_G: tuple[Verdict, ...]
    seconds: float
    raised: Mapping[str, str]
    """The last error of each reward function that raised (`verifier NAME` for the verifier)."""


class Scorer:
    """Scores groups one after the other. Its child process is started at once, so that a bad function shows
    early.

    Args:
        recipe_folder: to which the paths of user functions are relative.
        judge: runs untrusted code; None: no task needs that.
        name: the scorer's, in its run.
        run: the run's name, under which Prometheus is told what the scorer does; None: nobody is told.

    Raises:
        ValueError: section `reward` is wrong, or a function cannot be loaded.
    """

    def __init__(
        self,
        config: RewardConfig,
        recipe_folder: str,
        judge: PoolJudge | None = None,
        *,
        name: str = "scorer",
        run: str | None = None,
    ) -> None:
        self.doing = Doing(KeptGauges(run=run, part=name) if run is not None else None)
        self._judge = judge
        self._runner = FunctionRunner(config, Path(recipe_folder), judge=judge)
        self._runner.start()

    @told
    def score(self, task: Task, payload: GroupPayload) -> ScoreReport:
        """Verdicts of the payload's G completions, in order."""
        started = time.monotonic()
        completion_ids_G = [payload.token_ids[payload.completion(i)].tolist() for i in range(len(payload.texts))]
        verdicts, raised = self._runner.score(task, payload.texts, completion_ids_G)
        return ScoreReport(verdicts_G=tuple(verdicts), seconds=time.monotonic() - started, raised=raised)

    def use_pools(self, pools: Sequence[tuple[str, Any]]) -> None:
        """Have code judged in these sandbox pools from now on: node id and actor handle of each."""
        if self._judge is not None:
            self._judge.use(pools)

    def close(self) -> None:
        """Kill the child process."""
        self._runner.close()


def scorer_actor() -> Any:
    """The Ray actor class of Scorer; one call at a time. Scoring draws nothing, so a call may be repeated."""
    import ray

    return ray.remote(Scorer)


class ErrorStreaks:
    """Counts, per reward function, the groups in a row in which it raised; too many stop the run."""

    def __init__(self, max_consecutive_errors: int) -> None:
        self._limit = max_consecutive_errors
        self._streaks: dict[str, int] = {}

    def observe(self, raised: Mapping[str, str]) -> None:
        """Take in one scored group.

        Args:
            raised: `ScoreReport.raised`; functions that are not in it worked, and start from 0 again.

        Raises:
            RunStopped: a function raised in `max_consecutive_errors` groups in a row; names it and its last
                error.
        """
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in raised}
        for name, count in self._streaks.items():
            if count >= self._limit:
                raise RunStopped(
                    f"reward function {name} raised in {count} groups in a row "
                    f"(reward.max_consecutive_errors={self._limit}); the last error: {raised[name]}"
                )
