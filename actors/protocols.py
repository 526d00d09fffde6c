"""What the loop may ask of the parts. It imports these and no concrete class; `launch/build.py` names those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from funicular.actors.readings import Reading
from funicular.actors.scorer import ScoreReport
from funicular.actors.types import (
    EmptySlot,
    GenerationRecord,
    GenerationRequest,
    ScoredGroup,
    StepResult,
    TeacherRecord,
)
from funicular.actors.weight_sync import PublishReport
from funicular.rewards.types import Task


class Generating(Protocol):
    """All generators as one service (`actors/generators.py`)."""

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        """The record and the payload's reference; raises GroupFailed."""

    async def abort_all(self, reason: str) -> None:
        """Abort every running request."""

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call."""

    async def now(self) -> list[Reading]:
        """What they do now."""


class Scoring(Protocol):
    """All scorers as one service (`actors/scorers.py`)."""

    async def score(self, task: Task, payload: Any) -> ScoreReport:
        """Verdicts of one group; raises GroupFailed or RunStopped."""

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call."""

    async def now(self) -> list[Reading]:
        """What they do now, and what the sandbox does."""


class Teaching(Protocol):
    """All teachers as one service (`actors/teachers.py`)."""

    async def score(self, group_id: str, payload: Any) -> tuple[TeacherRecord, Any]:
        """The record and the reference to what the teacher said; raises GroupFailed or RunStopped."""

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call."""

    async def now(self) -> list[Reading]:
        """What they do now."""


class Watching(Protocol):
    """What nodes do (`cluster/node_monitors.py`)."""

    async def metrics(self) -> dict[str, float]:
        """Metrics since the last call."""


class Buffering(Protocol):
    """The rollout buffer (`actors/buffers.py`)."""

    released: int

    async def reserve(self) -> int:
        """The next slot, once it may be worked on."""

    async def fill(self, filling: ScoredGroup | EmptySlot) -> None:
        """Put a group, or word of its failure, into its slot."""

    async def take(self) -> tuple[ScoredGroup | EmptySlot, ...]:
        """The next training batch in slot order."""

    async def empty(self, slot: int) -> None:
        """Forget a slot's content, to be filled again."""

    async def release(self) -> None:
        """Release the batch taken last: its weights are committed."""

    def close(self) -> None:
        """Let go of everything held; nothing may be asked after this."""

    def metrics(self) -> dict[str, float]:
        """Of the batch taken last."""

    async def now(self) -> list[Reading]:
        """How its slots stand."""

    def waiting_slots(self) -> list[int]:
        """Reserved slots not filled yet, oldest first."""


class Learning(Protocol):
    """All learner ranks as one (`actors/learners.py`)."""

    async def step(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        """Train on one batch; raises PayloadsLost, LearnerLost or RunStopped."""

    async def save(self, folder: str) -> None:
        """Write a snapshot that `load` continues from."""

    async def load(self, folder: str) -> None:
        """Continue from a snapshot."""

    async def restart(self) -> None:
        """Replace every rank by a fresh one with the initial model."""

    async def export(self, folder: str) -> None:
        """Write the model in Hugging Face format."""


class Publishing(Protocol):
    """Weight sync (`actors/weight_sync.py`)."""

    version: int

    async def publish(self, version: int) -> PublishReport:
        """Make `version` what generators serve; returns when it is committed."""
