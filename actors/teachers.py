"""The teachers as one service: the least loaded scores the next group; a dead one is rebuilt, its groups wait.

Scoring the same completions again is safe, unlike generating them again: it draws nothing at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from funicular.actors.engine_members import EngineMembers, Member
from funicular.actors.errors import GroupFailed, first_line
from funicular.actors.types import TeacherRecord
from funicular.cluster.calls import call
from funicular.cluster.supervise import RestartBudget

TRIES = 2


class Teachers(EngineMembers):
    """Routes groups to teachers.

    Args:
        make_actor: starts the Ray actor for a name; the engine starts with its `start()`.
        count: number of teachers.
        budget: restarts that the run survives.
    """

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        start_deadline_s: float,
        budget: RestartBudget,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        super().__init__(
            "teacher",
            make_actor,
            count=count,
            start_deadline_s=start_deadline_s,
            budget=budget,
            kill_actor=kill_actor,
        )

    async def score(self, group_id: str, payload: Any) -> tuple[TeacherRecord, Any]:
        """Have one group scored. Where its teacher dies it waits for another one, or for the rebuilt one.

        Args:
            payload: ray.ObjectRef of the GroupPayload; fetched by the teacher, not by the caller.

        Returns:
            The record, and the reference to the TeacherPayload, which the caller owns.

        Raises:
            GroupFailed: the payload is lost (`payload_lost`), teachers died over it (`teacher_died`), or the engine
                could not score it (`teacher_failed`).
            RunStopped: no teacher can be brought back.
        """
        failures: list[GroupFailed] = []
        while len(failures) < TRIES:
            member = await self._least_loaded()
            self._work(member, +1)
            try:
                return await self._ask(member, group_id, payload)
            except _TeacherLost as error:
                failures.append(GroupFailed("teacher_died", str(error)))
            finally:
                self._work(member, -1)
        raise failures[-1]

    async def metrics(self) -> dict[str, float]:
        """Number of serving teachers and the fraction of time that teachers had nothing to do."""
        return {"perf/teacher_idle_frac": self._busy.idle_fraction(), "teachers/serving": float(self.serving)}

    async def _ask(self, member: Member, group_id: str, payload: Any) -> tuple[TeacherRecord, Any]:
        actor, what = member.actor, f"{member.name}: {group_id}"
        try:
            record_ref, scores_ref = actor.score.remote(payload)
            # No deadline here: the teacher itself watches for progress, and the health watch for the teacher.
            record: TeacherRecord = await call(record_ref, deadline_s=None, what=what)
            return record, scores_ref
        except RayActorError as error:
            reason = first_line(error)
            self._distrust(member, actor, reason)
            raise _TeacherLost(f"{member.name}: {reason}") from error
        except GroupFailed as error:
            if error.reason in ("engine_died", "no_progress"):
                self._distrust(member, actor, str(error))
                raise _TeacherLost(str(error)) from error
            raise GroupFailed("teacher_failed", str(error), retry_task=error.retry_task) from error
        except RayTaskError:
            raise  # the method's own exception, which Ray could not hand on as itself: a fault of ours
        except RayError as error:
            raise GroupFailed("payload_lost", first_line(error)) from error


class _TeacherLost(Exception):
    """The teacher that was asked is being rebuilt."""
