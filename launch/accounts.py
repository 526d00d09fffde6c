"""Which group stands where: draws tasks, gives group ids, and writes every change to the ledger first.

An `Issue` is one try at a slot. A slot's tries follow each other under new group ids; `replaces` links them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from funicular.actors.errors import GroupFailed, RunStopped
from funicular.actors.types import GenerationRecord, ScoredGroup
from funicular.launch.ledger import Ledger
from funicular.launch.tasks import TaskIterator
from funicular.rewards.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One try at filling a slot."""

    group_id: str
    task: Task
    slot: int
    tries: int
    """Tries at this slot before this one, since it was reserved or the run went back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where the accounts stood at a snapshot; part of its state file."""

    released: int
    """Slots released: the next training batch begins there."""
    drawn: int
    """Tasks drawn from the iterator."""
    open: Mapping[int, tuple[str, str]]
    """Slot to (task id, group id) of every group issued and not trained or dropped."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        open_groups = {str(slot): list(entry) for slot, entry in self.open.items()}
        return {"released": self.released, "drawn": self.drawn, "open": open_groups}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`."""
        open_groups = {int(slot): (entry[0], entry[1]) for slot, entry in data["open"].items()}
        return cls(released=data["released"], drawn=data["drawn"], open=open_groups)


class Accounts:
    """Issues groups for slots, and knows which are open.

    Args:
        tasks: the training tasks' iterator; the accounts alone draw from it.
        by_id: the training tasks by task id, to issue a task again.
    """

    def __init__(self, ledger: Ledger, tasks: TaskIterator, by_id: Mapping[str, Task]) -> None:
        self.ledger = ledger
        self.counts = {"issued": 0, "dropped": 0, "empty": 0, "trained": 0}
        """Over this process."""
        self.drop_reasons: Counter[str] = Counter()
        """Over this process too."""
        self._tasks = tasks
        self._by_id = by_id
        self._open: dict[int, Issue] = {}
        self._again: dict[int, tuple[str, str]] = {}

    @property
    def epoch(self) -> int:
        """Passes over the training tasks."""
        return self._tasks.epoch

    @property
    def open_groups(self) -> int:
        """Groups that are issued, and neither trained nor dropped."""
        return len(self._open)

    def open(self, slot: int) -> Issue:
        """Issue a group for a newly reserved slot: the task it had at the snapshot, or the next one."""
        if slot in self._again:
            task_id, replaces = self._again.pop(slot)
            return self._issue(slot, self._by_id[task_id], replaces, tries=0)
        return self._issue(slot, self._tasks.next(), None, tries=0)

    def again(self, issue: Issue, failure: GroupFailed) -> Issue:
        """Drop a try and issue the next one for its slot, with the same task where that makes sense."""
        self.drop(issue, failure.reason)
        task = issue.task if failure.retry_task else self._tasks.next()
        return self._issue(issue.slot, task, issue.group_id, tries=issue.tries + 1)

    def drop(self, issue: Issue, reason: str) -> None:
        """Give a group up."""
        self.ledger.append("dropped", group=issue.group_id, reason=reason)
        self.counts["dropped"] += 1
        self.drop_reasons[reason] += 1
        del self._open[issue.slot]

    def generated(self, issue: Issue, record: GenerationRecord) -> None:
        """A generator made the group's completions."""
        self.ledger.append(
            "generated",
            group=issue.group_id,
            generator=record.generator,
            oldest=record.oldest_version,
            newest=record.newest_version,
        )

    def scored(self, group: ScoredGroup) -> None:
        """A scorer gave its verdicts."""
        self.ledger.append("scored", group=group.group_id, valid=sum(group.valid_G))

    def trained(self, step: int, version: int, groups: Sequence[ScoredGroup]) -> None:
        """The learner's optimizer steps on these groups are done."""
        ids = [group.group_id for group in groups]
        self.ledger.append("trained", step=step, version=version, groups=ids)
        self.counts["trained"] += len(ids)
        for group in groups:
            del self._open[group.slot]

    def issue_of(self, group: ScoredGroup) -> Issue:
        """The open issue that a group fills."""
        return self._open[group.slot]

    def position(self, released: int) -> Position:
        """Where the accounts stand, for a snapshot taken now."""
        open_groups = {slot: (issue.task.task_id, issue.group_id) for slot, issue in sorted(self._open.items())}
        open_groups |= self._again
        return Position(released=released, drawn=self._tasks.position, open=open_groups)

    def refuse_other_data(self, position: Position) -> None:
        """Raise RunStopped if open groups of a snapshot are of tasks that are not in the training data."""
        if missing := sorted({task_id for task_id, _ in position.open.values()} - self._by_id.keys()):
            raise RunStopped(
                f"the checkpoint has open groups of tasks that are not in the training data: {', '.join(missing)}; "
                "resume with the `data` and `seed` that the run began with"
            )

    def go_back(self, position: Position, step: int, checkpoint: str | None, *, asked_for: bool) -> None:
        """Return to a snapshot: what came after it is void, and what was open then will be issued again."""
        self.ledger.append(
            "rolled_back", to_step=step, checkpoint=checkpoint, asked_for=asked_for, open=list(position.open)
        )
        self._open.clear()
        self._again = dict(position.open)
        self._tasks.position = position.drawn

    def close(self, reason: str) -> None:
        """Drop whatever is open: the run is over."""
        for issue in list(self._open.values()):
            self.drop(issue, reason)

    def _issue(self, slot: int, task: Task, replaces: str | None, *, tries: int) -> Issue:
        group_id = self.ledger.issue(task.task_id, slot, replaces)
        self.counts["issued"] += 1
        issue = Issue(group_id=group_id, task=task, slot=slot, tries=tries)
        self._open[slot] = issue
        return issue
