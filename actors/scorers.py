"""The scorers as one service: the least loaded takes the next group; a dead one is replaced, its groups re-scored.

Scoring the same completions again is safe, unlike generating them again: it draws nothing at random.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from funicular.actors.errors import GroupFailed
from funicular.actors.scorer import ErrorStreaks, ScoreReport
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.supervise import RestartBudget
from funicular.rewards.types import Task

log = logging.getLogger(__name__)

TRIES = 2


@dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    in_flight: int = 0


class Scorers:
    """Routes groups to scorers.

    Args:
        make_actor: starts the Ray actor for a name.
        deadline_s: seconds within which a scorer must answer for one group, all its time limits included.
    """

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        deadline_s: float,
        streaks: ErrorStreaks,
        budget: RestartBudget,
    ) -> None:
        self._make_actor = make_actor
        self._deadline_s = deadline_s
        self._streaks = streaks
        self._budget = budget
        self._members = [_Member(f"scorer-{i}", make_actor(f"scorer-{i}")) for i in range(count)]

    async def score(self, task: Task, payload: Any) -> ScoreReport:
        """Score one group.

        Args:
            payload: ray.ObjectRef of its GroupPayload; fetched by the scorer, not by the caller.

        Raises:
            GroupFailed: the payload is lost, or scorers died over it.
            RunStopped: a reward function raised in too many groups in a row.
        """
        for _ in range(TRIES):
            member = min(self._members, key=lambda m: m.in_flight)
            member.in_flight += 1
            actor = member.actor
            try:
                what = f"{member.name}: {task.task_id}"
                report = await call(actor.score.remote(task, payload), deadline_s=self._deadline_s, what=what)
            except (RayActorError, DeadlineExceeded) as error:
                self._replace(member, actor, str(error).splitlines()[0])
            except RayError as error:
                raise GroupFailed("payload_lost", str(error).splitlines()[0]) from error
            else:
                self._streaks.observe(report.raised)
                return report
            finally:
                member.in_flight -= 1
        raise GroupFailed("scorer_died", f"{TRIES} times over task {task.task_id}")

    async def stop(self) -> None:
        """Kill every actor."""
        for member in self._members:
            ray.kill(member.actor)

    def _replace(self, member: _Member, dead: Any, reason: str) -> None:
        if member.actor is not dead:  # another of its groups has replaced it already
            return
        log.warning("%s is replaced: %s", member.name, reason)
        self._budget.spend(member.name, reason)
        ray.kill(dead)
        member.actor = self._make_actor(member.name)
